"""Run one command line: find the command, read its options, and turn errors into exit codes.

This module defines the click group `goatherd` and the options that most commands have. It opens no store and contacts
no server. Rules: a command's module is imported only when that command is run (tests/unit/cli/test_help.py); only this
module maps errors to exit codes.
"""

# ruff: noqa: ARG002 (click's methods have the arguments that click gives them)

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from goatherd.cli.menu import ALIASES, COMMANDS, FIRST_STEPS, FORMS, GROUPS, help_text
from goatherd.cli.output import Output, discard_output
from goatherd.config.options import Options, load_options, option_keys
from goatherd.config.values import parse_port
from goatherd.errors import ConfigurationError, GoatherdError
from goatherd.telemetry import describe_count

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from goatherd.operations.runs import AuditLog

_FAMILIES: Final = {
    "configuration": (2, "the command line, the environment or goatherd.toml is wrong"),
    "plugin": (3, "a plugin, or the libraries that it needs, are not installed"),
    "wire": (4, "malformed bytes from a peer, a client or a file"),
    "verification": (5, "a signature is invalid, or its signer is not trusted"),
    "identity": (6, "the identity is malformed, refused, or exists already"),
    "provider": (7, "the secret store refused or failed, or holds no such secret"),
    "settings": (8, "settings could not be read"),
    "node": (9, "a server gave an unexpected answer or none, or its data directory cannot be used"),
    "rotation": (
        10,
        "the rotation cannot start or continue, or was cancelled or rolled back because a server did not follow",
    ),
    "agent": (12, "the agent cannot run a server, or has stopped one that exposed its private key"),
    "audit": (13, "the audit trail is broken, or cannot be written"),
    "signer": (14, "the signer refused or failed, or has another key than the expected one"),
}
"""For each family of errors, which is the first part of an error's code, the exit code and its meaning."""
EXIT_CODES = {family: code for family, (code, _) in _FAMILIES.items()}
EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_FINDINGS = 11
EXIT_KEY_FOUND = 15
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
COMPLETION_VARIABLE = "_GOATHERD_COMPLETE"
"""Environment variable with which a shell requests completions from click, without arguments."""

EXIT_MEANINGS = {
    0: "done",
    EXIT_INTERNAL: "a bug of Goatherd, or the operating system refused something, such as a full disk",
    **dict(_FAMILIES.values()),
    EXIT_FINDINGS: "`doctor`, `status`, `stores status`, `migrate`, `restore --signature` or `demo` found something "
    "wrong, `revoke`, `rotate --replace-expired` or `stores sync` is not finished, `retire` has kept a version that a "
    "label points at, or `scan` could not search everything",
    EXIT_KEY_FOUND: "`scan` found a private key",
    EXIT_INTERRUPTED: "interrupted",
    EXIT_TERMINATED: "ended by SIGTERM",
}


FC = TypeVar("FC", bound=Callable[..., Any])
CommandFunction = Callable[..., int | Coroutine[Any, Any, int | None] | None]


class App(NamedTuple):
    """The context that every command function receives.

    Attributes:
        options: The options of the command line, the environment and the configuration file.
        out: Writes results, notes and errors.
        debug: Whether tracebacks are shown.
        owns_process: Whether the process runs only this command line. If a program or a test calls `run`, a command
            must not change the process, such as its priority.
    """

    options: Options
    out: Output
    debug: bool
    owns_process: bool


class PortType(click.ParamType):  # type: ignore[type-arg]  # it takes none before click 8.4
    """Parameter type of a port number, for options that goatherd.toml does not have."""

    name = "port"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return parse_port(value)
        except ConfigurationError as error:
            self.fail(f"{error}. {error.hint}", param, ctx)


PORT = PortType()


class PathType(click.Path):
    """Parameter type of a path. It rejects an empty string, which would mean the current directory, and a URI."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("the path must not be empty", param, ctx)
        if "://" in str(value):  # it would be taken for a path below the current directory
            self.fail("this is a URI, and a path is needed, such as /srv/goatdb", param, ctx)
        return super().convert(value, param, ctx)


FILE = PathType(path_type=Path, dir_okay=False)
DIRECTORY = PathType(path_type=Path, file_okay=False)
ANY_PATH = PathType(path_type=Path)


class Terminated(click.Abort):
    """The process received SIGTERM. Handled like Ctrl-C, for which click raises `Abort`."""


class FormedCommand(click.Command):
    """A command that may have other forms. A shell completes the flags of the forms like options."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        flags = FORMS.get(self.name or "", {}) if incomplete.startswith("-") else {}
        forms = [CompletionItem(flag, help=COMMANDS[other]) for flag, other in flags.items()]
        return [*super().shell_complete(ctx, incomplete), *(one for one in forms if one.value.startswith(incomplete))]


class Menu(click.Group):
    """The click group of all commands. It imports a command's module when that command is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        # A hidden alias is in the module of the command that replaces it: `versions` in `show`, for `show --versions`.
        module = importlib.import_module(f"goatherd.cli.{ALIASES.get(cmd_name, cmd_name).partition(' ')[0]}")
        found = getattr(module, cmd_name)
        assert isinstance(found, click.Command)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, rest = args[0], args[1:]
        if name == "help" and not ctx.resilient_parsing:
            args = [*(word for word in rest if not word.startswith("-")), "--help"]
            if len(args) == 1:
                click.echo(self.get_help(ctx))
                ctx.exit()
            name, rest = args[0], args[1:]
        if name in FORMS:
            chosen = next((word for word in self._find_flags(ctx, name, rest) if word in FORMS[name]), None)
            if chosen is not None:
                rest.remove(chosen)
                return f"{name} {chosen}", self.get_command(ctx, FORMS[name][chosen]), rest
        if ctx.resilient_parsing:  # a shell wants completions, and would write a message into the prompt
            return super().resolve_command(ctx, args)
        if name in ALIASES and is_at_terminal():
            click.echo(f"note: `goatherd {name}` is now `goatherd {ALIASES[name]}`; both work", err=True)
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name.lower(), COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise click.UsageError(f"No such command {name!r}.{hint}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def _find_flags(self, ctx: click.Context, name: str, words: list[str]) -> list[str]:
        """Return the words that may select another form of the command `name`, such as ``--once`` for `run`.

        The words of the server command that `goatherd run` starts are left out.
        """
        own = words[: words.index("--")] if "--" in words else words
        if name != "run":
            return own
        forms = [self.get_command(ctx, form) for form in (name, *FORMS[name].values())]
        options = [item for form in forms if form for item in form.params if isinstance(item, click.Option)]
        with_value = {flag for option in options if not option.is_flag for flag in option.opts}
        flags, rest = [], iter(own)
        for word in rest:
            if not word.startswith("-"):
                break
            flags.append(word)
            if word in with_value:
                next(rest, None)
        return flags

    def get_help(self, ctx: click.Context) -> str:
        return help_text()

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name without importing any command."""
        from click.shell_completion import CompletionItem

        shown = [name for names in GROUPS.values() for name in names if name.startswith(incomplete)]
        items = [CompletionItem(name, help=COMMANDS[name]) for name in shown]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]


def is_at_terminal() -> bool:
    """Whether standard error is a terminal. Notes for a human reader are written only then."""
    return sys.stderr.isatty()


@click.group(
    cls=Menu,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--version", is_flag=True, help="Show the versions of Goatherd, Python and libraries, and exit.")
@click.option("--json", "as_json", is_flag=True, help="Write the result or the error as one JSON document.")
@click.pass_context
def cli(context: click.Context, version: bool, as_json: bool) -> None:
    """Keep the server identity of a GoatDB cluster in a secret store, and rotate it while the cluster serves."""
    if version:
        from goatherd.operations.installation import describe_installation

        found = describe_installation()
        Output(as_json=as_json).result(found.to_json(), found.lines())
        context.exit()
    if context.invoked_subcommand is None:
        raise click.UsageError("no command is given", ctx=context)


def checked(parse: Callable[[str], object]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Return a click callback that validates an option's string with `parse`. An error names the option."""

    def check(_: click.Context, parameter: click.Parameter, value: Any) -> Any:
        for text in value if isinstance(value, tuple) else () if value is None else (value,):
            try:
                parse(text)
            except ConfigurationError as error:
                raise ConfigurationError(f"{parameter.opts[-1]}: {error}", hint=error.hint) from None
        return value

    return check


_METAVARS: Final = {
    "time": "TIME",
    "number": "N",
    "URL": "URL",
    "URI": "URI",
    "command": "CMD",
    "signal": "NAME",
    "list of URLs": "URL",
    "list of URIs": "URI",
    "list of networks": "NETWORK",
}
"""The placeholder of a flag's value in the help, by the form of the option that the flag sets."""


def config_flag(
    flag: str,
    attribute: str,
    text: str | None = None,
    *,
    metavar: str | None = None,
    kind: click.ParamType | None = None,  # type: ignore[type-arg]
) -> Callable[[FC], FC]:
    """Return a flag that sets an option of the configuration, for one command line.

    A flag for a list can be given more than once, which its help then says.

    Args:
        flag: The flag, such as ``--adoption``.
        attribute: The field of `Options`.
        text: The help; None for the option's own. The option's default is added, unless the text states it, in which
            ``{default}`` stands for it.
        metavar: How the help names the value, if not as the option's form requires.
        kind: The type of the parameter; None for a string, which `load_options` parses.
    """
    key = next(one for one in option_keys() if one.attribute == attribute)
    is_list = key.form.startswith("list of ")
    text = text or key.help
    if key.default_text and "default" not in text:
        text = f"{text.removesuffix('.')} (default: {{default}})."
    return click.option(
        flag,
        attribute,
        multiple=is_list,
        metavar=metavar or _METAVARS.get(key.form),
        type=kind,
        help=text.replace("{default}", key.default_text) + (" Can be given more than once." if is_list else ""),
    )


def add_options(*options: Callable[[FC], FC]) -> Callable[[FC], FC]:
    """Return a decorator that gives a command several options, in this order."""

    def decorate(function: FC) -> FC:
        for option in reversed(options):  # click puts the option that is added last in front
            function = option(function)
        return function

    return decorate


def command(
    *, example: str, nodes: bool = False, orgs: bool = False, store: bool = True, org: bool = True
) -> Callable[[CommandFunction], click.Command]:
    """Turn a function into a click command that has the common options.

    The function receives an `App`, then those of its own options that are not fields of `Options`. It may be a
    coroutine function.

    Args:
        example: Commands that the help shows as an example, one a line.
        nodes: Whether the command contacts servers; adds --node and --timeout.
        orgs: Whether --org can be given more than once; the function then receives the organizations as `orgs`.
        store: Whether the command uses the configured store; adds --provider.
        org: Whether the command uses an organization; adds --org.
    """
    attributes = {key.attribute for key in option_keys()}

    def decorate(function: CommandFunction) -> click.Command:
        def entry(**given: Any) -> int | None:
            as_json, debug, file = given.pop("as_json"), given.pop("debug"), given.pop("config_file")
            flags = {name: given.pop(name) for name in list(given) if name in attributes}
            context = click.get_current_context()
            as_json = as_json or bool(context.find_root().params.get("as_json"))
            names = {item.name: item.opts[-1] for item in context.command.params if item.name and item.name in flags}
            options = load_options(flags, os.environ, directory=_find_current_directory(), file=file, flag_names=names)
            try:
                out, owns_process = Output(as_json=as_json), context.find_object(bool) is True
                app = App(options=options, out=out, debug=debug, owns_process=owns_process)
                done = function(app, **given)
                if isinstance(done, Coroutine):
                    import asyncio  # here, since a short command needs no event loop

                    done = asyncio.run(done)
                return done
            except BrokenPipeError as error:
                # Not raised by `Output`. click would take it for a closed standard output, and so for success.
                raise RuntimeError(f"a pipe or a connection was closed: {error}") from error

        entry.__doc__ = function.__doc__
        provider_option = config_flag("--provider", "provider", "URI of the store, such as file:///srv/keys/root.")
        org_option = click.option(
            "--org",
            *(["orgs"] if orgs else []),
            multiple=orgs,
            metavar="ID",
            help="Organization, which replaces `{org}` in the secret's name (default: localhost).",
        )
        shared = [
            *([provider_option] if store else []),
            *([org_option] if org else []),
            click.option(
                "--config",
                "config_file",
                type=ANY_PATH,
                help="Path of the configuration file (default: ./goatherd.toml).",
            ),
            click.option("--json", "as_json", is_flag=True, help="Write the result or the error as one JSON document."),
            click.option("--debug", is_flag=True, help="Show the traceback of an error."),
        ]
        if nodes:
            shared[:0] = [
                config_flag("--node", "nodes", "URL of a server of the cluster."),
                config_flag("--timeout", "timeout"),
            ]
        add_options(*shared)(entry)  # behind the command's own options
        entry.__click_params__ += getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
        name = function.__name__.rstrip("_")
        epilog = forms_of(name) + help_with_example(example)
        return click.command(name, cls=FormedCommand, short_help=COMMANDS[name], epilog=epilog)(entry)

    return decorate


audit_option = config_flag(
    "--audit-log",
    "audit_log",
    "File of the audit trail, a chain of signed records, to which the command appends every decision.",
    kind=FILE,
)
"""The option ``--audit-log`` of a command that writes the audit trail."""


def audit_log(app: App) -> AuditLog | None:
    """Return the audit trail that ``--audit-log`` names; None if the option is not given."""

    from goatherd.operations.runs import AuditLog

    def warn(path: Path, count: int) -> None:
        text = f"the audit trail {path} lacks {describe_count(count, 'record')} that could not be written"
        app.out.event("audit", {"missing": count, "file": str(path)}, text)

    def show_head(path: Path, head: str) -> None:
        app.out.event("auditHead", {"head": head, "file": str(path)}, f"audit trail {path}: head {head}")

    return None if app.options.audit_log is None else AuditLog(app.options.audit_log, warn, show_head)


distrust_option = config_flag(
    "--distrust",
    "rotation_distrust",
    "URL of a server to ignore when it reports a later identity than the store holds.",
)
"""The option ``--distrust``, which names servers whose reports on the store's history are ignored."""

accept_identity_option = click.option(
    "--accept-identity",
    is_flag=True,
    help="Accept the first identity that the store returns, even if no trusted root has endorsed it, or it is older"
    " than the one in use.",
)
"""The option ``--accept-identity`` of a command that runs a server."""

refresh_interval_option = config_flag("--refresh-interval", "settings_refresh_interval")
"""The option ``--refresh-interval`` of a command that follows the store."""

peers_option = config_flag("--peer", "serve_peers", "URL of another server of the cluster.")
"""The option ``--peer``, which names the other servers of the cluster."""

without_nodes_option = click.option(
    "--unsafe-without-nodes",
    is_flag=True,
    help="Allow a run without a list of servers: it then does not wait until servers trust the next root.",
)
"""The option ``--unsafe-without-nodes`` of a command that rotates."""


def create_key_option(*, before: str) -> Callable[[FC], FC]:
    """Return the option ``--create-key``; `before` says what the command does after it has created the key."""
    return click.option(
        "--create-key",
        is_flag=True,
        help=f"Create the HSM or KMS key that --anchor names, before {before}. The key must not exist yet; only with"
        " --anchor.",
    )


direct_option = click.option(
    "--direct",
    is_flag=True,
    help="Let the anchor itself sign as the root, without a working root (direct mode); only with --anchor.",
)
"""The option ``--direct`` of a command that sets an anchor."""

idle_timeout_option = config_flag("--idle-timeout", "limits_idle_timeout")
"""The option ``--idle-timeout`` of a command that serves clients."""

forwarded_by_option = config_flag(
    "--forwarded-by",
    "limits_forwarded_by",
    "Network of a reverse proxy in front, whose X-Forwarded-For header is trusted.",
)
"""The option ``--forwarded-by`` of a command that serves clients."""

lifetime_option = config_flag(
    "--lifetime", "rotation_lifetime", "How long the new root is valid (default: {default}; for a working root: 30d)."
)
"""The option ``--lifetime`` of a command that makes a new root."""

working_lifetime_option = config_flag(
    "--working-lifetime",
    "rotation_working_lifetime",
    "How long a new working root is valid; only if the identity has an anchor.",
)
"""The option ``--working-lifetime`` of a command that may make a working root."""

adoption_option = config_flag("--adoption", "rotation_adoption")
"""The option ``--adoption`` of a command that waits until servers have adopted the identity."""

region_option = config_flag(
    "--region",
    "stores_region",
    "Region of this machine, whose store is read first; only with [stores] in goatherd.toml.",
    metavar="NAME",
)
"""The option ``--region``, for commands that run on the machine of a server."""

allow_lagging_option = config_flag(
    "--allow-lagging",
    "stores_allow_lagging",
    "Region whose store may lag: changes do not wait for it, and its servers follow late, or not at all.",
    metavar="REGION",
)
"""The option ``--allow-lagging``, for commands that change the identity."""


def forms_of(name: str) -> str:
    """Return the part of a command's help that lists its other forms, such as `show --versions` for `show`.

    For a hidden alias, such as `versions`, return the part that says what to type instead.
    """
    if name in ALIASES:
        return f"\b\nThis command is now `goatherd {ALIASES[name]}`; the old name, `goatherd {name}`, still works.\n\n"
    forms = FORMS.get(name)
    if not forms:
        return ""
    width = max(map(len, forms))
    lines = [f"  {flag:<{width}}  {COMMANDS[other]}" for flag, other in forms.items()]
    return "\n".join(
        ["\b", f"Other forms, each with options of its own (goatherd {name} FLAG --help):", *lines, "", ""]
    )


def help_with_example(example: str) -> str:
    """Return the last part of a command's help: the example, with one command a line."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in example.strip().splitlines())


def _find_current_directory() -> Path:
    """Return the current directory, which may hold a goatherd.toml; `Path()` if that directory was removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return Path()


def exit_code(error: GoatherdError) -> int:
    """Return the exit code for an error; the part of its error code before the first dot decides."""
    return EXIT_CODES.get(error.code.partition(".")[0], EXIT_INTERNAL)


def run(arguments: Sequence[str], *, owns_process: bool = False) -> int:
    """Run one command line and return its exit code. Errors are printed; no exception escapes.

    Args:
        arguments: The command line without the program's name.
        owns_process: Whether this process runs only this command line, so that commands may change its priority.
    """
    flags = list(arguments)[: arguments.index("--")] if "--" in arguments else list(arguments)
    out, debug = Output(as_json="--json" in flags), "--debug" in flags
    if not arguments and COMPLETION_VARIABLE not in os.environ:
        for line in FIRST_STEPS.splitlines():
            out.write_note(line)
        return EXIT_USAGE
    try:
        done = cli.main(list(arguments), prog_name="goatherd", standalone_mode=False, obj=owns_process)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "goatherd"
        hint = f"`{where} --help` shows its arguments and options."
        if isinstance(error, click.NoSuchOption) and where == "goatherd":
            hint = "Options follow the command: goatherd COMMAND --provider URI. `goatherd --help` lists the commands."
        out.failure("usage", " ".join(error.format_message().split()), hint)
        return EXIT_USAGE
    except click.ClickException as error:
        out.failure("usage", error.format_message(), "")
        return EXIT_USAGE
    except (click.Abort, KeyboardInterrupt) as error:
        return _report_error(out, error, debug=debug)
    except SystemExit:  # click raises it if the pipe is closed while it writes: `goatherd --help | head -1`
        discard_output(sys.stdout)
        return 0
    except BaseExceptionGroup as group:
        return _report_error(out, _choose_error(group), debug=debug)
    except Exception as error:  # noqa: BLE001 - the last frame: every error is reported without key material
        return _report_error(out, error, debug=debug)
    return done if isinstance(done, int) else 0


def _choose_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error to report for an exception group: its first `GoatherdError`, or else its first error."""
    flat: list[BaseException] = []
    queue: list[BaseException] = [group]
    while queue:
        error = queue.pop(0)
        if isinstance(error, BaseExceptionGroup):
            queue.extend(error.exceptions)
        else:
            flat.append(error)
    return next((error for error in flat if isinstance(error, GoatherdError)), flat[0])


def _report_error(out: Output, error: BaseException, *, debug: bool) -> int:
    if isinstance(error, Terminated):
        out.failure("interrupted", "ended by SIGTERM", "")
        return EXIT_TERMINATED
    if isinstance(error, click.Abort | KeyboardInterrupt):
        out.failure("interrupted", "interrupted", "")
        return EXIT_INTERRUPTED
    out.error(error, debug=debug)
    return exit_code(error) if isinstance(error, GoatherdError) else EXIT_INTERNAL
