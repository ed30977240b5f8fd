"""`goatherd doctor --options`: show every option with its value and where the value comes from."""

from __future__ import annotations

from goatherd.cli.main import App, command
from goatherd.config.options import effective_settings


@command(example="goatherd doctor --options\ngoatherd config --config /etc/goatherd.toml --json")
def config(app: App) -> None:
    """Show every option with its value and where the value comes from.

    The source is a flag, an environment variable, the configuration file with its line, or the default. A flag takes
    precedence over the environment, and the environment over the file. Passwords, tokens and the arguments of commands
    are hidden. The command contacts no store and no server.
    """
    settings = effective_settings(app.options)
    file = None if app.options.file is None else str(app.options.file)
    data = {
        "file": file,
        "options": [
            {"key": each.key, "value": each.value, "source": each.source, "variable": each.variable}
            for each in settings
        ],
    }
    rows = [(each.key, "-" if each.value is None else each.value, each.source) for each in settings]
    table = app.out.table(("KEY", "VALUE", "SOURCE"), rows)
    app.out.result(data, [f"configuration file: {file or 'none'}", "", *table])
