"""The commands of `goatherd` as data: their groups, help lines and aliases, and the texts that list them.

Rules: this module imports nothing, so that ``goatherd --help`` starts almost as fast as Python itself
(tests/unit/cli/test_start_up.py). No line of the help is wider than 79 characters.
"""

from __future__ import annotations

GROUPS = {
    "Identity": ("init", "migrate", "export", "show", "copy"),
    "Servers": ("serve", "run", "door"),
    "Rotation": ("rotate", "revoke", "retire", "restore", "controller"),
    "Look": ("status", "web", "history", "doctor", "stores", "scan", "audit", "policy", "completion"),
}
"""The commands that the help shows, by group. All other commands are hidden."""

COMMANDS = {
    "init": "Create an identity in a store that has none.",
    "migrate": "Bring a GoatDB cluster's identity into a store.",
    "export": "Write the identity as a GoatDB settings.json.",
    "show": "Show the identity, without its keys.",
    "copy": "Copy an identity from one store to another.",
    "serve": "Run a GoatDB server that takes its identity from a store.",
    "run": "Run an unmodified GoatDB server with its identity from a store.",
    "door": "Run a verifying proxy in front of an unmodified GoatDB server.",
    "rotate": "Replace the root key while the cluster serves.",
    "revoke": "Revoke a root whose private key was exposed.",
    "retire": "Destroy old private keys whose grace period has ended.",
    "restore": "Make a previous root the current root again.",
    "controller": "Rotate on a schedule, resume rotations, destroy old keys.",
    "status": "Show the state of the cluster, every server, and what to do next.",
    "web": "Serve a read-only page with the status of a cluster, live.",
    "history": "Show past rotations with their outcome, as a list or a timeline.",
    "doctor": "Check the store, the identity and every server.",
    "scan": "Search files, images and git histories for private keys.",
    "stores": "Show the stores of several regions, or promote one.",
    "audit": "Check an audit trail, or show it.",
    "policy": "Print the store permissions that a server or a rotator needs.",
    "completion": "Print the script that completes commands in a shell.",
    "versions": "List the stored versions and their labels, or move a label.",
    "config": "Show every option with its value and where the value comes from.",
    "sign": "Repair an invalid signature of the identity: sign the changes, or undo them.",
    "data": "Check a server's data directory, or repair it.",
    "fetch": "Write a GoatDB server's settings.json once, then exit.",
    "watch": "Keep settings.json up to date for a server that another program runs.",
    "lease": "Show which server holds the restart lease, or create the lease.",
    "demo": "Run three servers with one identity, and rotate twice under traffic.",
}
"""The help line of each command. The module of a command in `goatherd.cli` has the command's name; that of a hidden
alias has the name of the command that replaces it."""

FORMS = {
    "show": {"--versions": "versions"},
    "run": {"--once": "fetch", "--watch": "watch"},
    "restore": {"--signature": "sign"},
    "status": {"--restart-lease": "lease"},
    "doctor": {"--data": "data", "--options": "config"},
}
"""Flags that select another command: `goatherd show --versions` runs `versions`, whose name is a hidden alias."""
ALIASES = {other: f"{name} {flag}" for name, flags in FORMS.items() for flag, other in flags.items()}
"""For each hidden alias, the command and flag that replace it."""

_HELP = """\
Usage: goatherd [OPTIONS] COMMAND [ARGS]...

  Keep the server identity of a GoatDB cluster in a secret store, and rotate
  it while the cluster serves.

Options:
  --version   Show the versions of Goatherd, Python and libraries, and exit.
  --json      Write the result or the error as one JSON document.
  -h, --help  Show this message and exit.

{groups}

  `goatherd COMMAND --help` shows the options of a command, and an example.
  `goatherd demo` runs three servers and rotates their root under traffic.
  The store is named by --provider URI, by GOATHERD_PROVIDER, or by `provider`
  in goatherd.toml."""

FIRST_STEPS = """\
Usage: goatherd [OPTIONS] COMMAND [ARGS]...

Goatherd keeps the server identity of a GoatDB cluster in a secret store, and
rotates it while the cluster serves. The first three commands:

  goatherd init --provider file:///srv/keys/root
      Create an identity in a store (`goatherd migrate` brings an existing one).

  goatherd serve --provider file:///srv/keys/root --data /srv/goatdb
      Start a server with it (`goatherd run` starts an unmodified GoatDB server).

  goatherd rotate --provider file:///srv/keys/root --node http://127.0.0.1:8080
      Replace the root key while the server serves.

`goatherd demo` shows all this in a temporary directory. `goatherd --help` lists
every command."""
"""Printed if `goatherd` is called without arguments."""


def help_text() -> str:
    """Return the output of ``goatherd --help``."""
    groups = [
        "\n".join([f"{title}:", *(f"  {name:<10}  {COMMANDS[name]}" for name in names)])
        for title, names in GROUPS.items()
    ]
    return _HELP.format(groups="\n\n".join(groups))
