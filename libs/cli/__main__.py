"""The command line. A new command is a file with an `app`, named in COMMANDS."""

import sys

import typer

from libs.cli import demo, down, health, import_command, logs, migrate, psql, status, up
from libs.stack.errors import StackError

COMMANDS = (up, status, down, logs, health, demo, import_command, migrate, psql)

app = typer.Typer(
    help="Tradeloom: a self-hosted trading platform. `tradeloom up` starts all of it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in COMMANDS:
    app.add_typer(command.app)


def main() -> None:
    try:
        app()
    except StackError as error:
        print(f"tradeloom: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
