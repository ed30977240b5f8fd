"""`goatherd completion`: print the script that completes commands and options in a shell."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from goatherd.cli.main import COMPLETION_VARIABLE, cli, help_with_example
from goatherd.cli.menu import COMMANDS
from goatherd.cli.output import Output


@click.command(
    "completion",
    short_help=COMMANDS["completion"],
    epilog=help_with_example('eval "$(goatherd completion bash)"'),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands in a shell.

    The script completes commands and options when you press Tab. Put the command of the example below into the start-up
    file of your shell, such as ~/.bashrc. For fish: goatherd completion fish | source
    """
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(cli, {}, "goatherd", COMPLETION_VARIABLE).source()
    Output(as_json=False).document(script)
