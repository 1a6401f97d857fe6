"""The command line. A new command is a file with an `app`, named in COMMANDS."""

import sys
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from libs.stack.errors import StackError

COMMANDS = {
    "up": "up",
    "status": "status",
    "down": "down",
    "logs": "logs",
    "health": "health",
    "demo": "demo",
    "import": "import_command",
    "migrate": "migrate",
    "psql": "psql",
}
"""Each command's file in this folder."""


class Commands(TyperGroup):
    """Loads the file of the command that is asked for, and no other: half of a short command's time is loading gRPC."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        return get_command(import_module(f"libs.cli.{COMMANDS[cmd_name]}").app)


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback(help="Tradeloom: a self-hosted trading platform. `tradeloom up` starts all of it.")
def every_command() -> None:
    """What all commands share: nothing yet."""


def main() -> None:
    try:
        app()
    except StackError as error:
        print(f"tradeloom: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
