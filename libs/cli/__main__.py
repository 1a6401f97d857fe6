"""The command line. A new command is a file whose `app` has one command, or a few, and no completion, named in COMMANDS."""

import sys
from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Any, cast

import typer
from typer.core import TyperGroup
from typer.main import get_command

from libs.stack.errors import StackError

COMMANDS = {
    file.removesuffix("_command").replace("_", "-"): file
    for file in (
        "up",
        "status",
        "down",
        "logs",
        "health",
        "demo",
        "import_command",
        "export_command",
        "candles",
        "parent_orders",
        "live",
        "migrate",
        "psql",
        "audit",
        "rotate_keys",
        "timescale",
    )
}
"""The files of this folder by their commands: neither `import` alone nor a name with a hyphen can name a module."""


class Files(Mapping[str, Any]):
    """The commands by name. Only the file of the one that is asked for is loaded: gRPC would be half of `status`."""

    def __getitem__(self, name: str) -> Any:
        command = get_command(import_module(f"libs.cli.{COMMANDS[name]}").app)
        command.name = name
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Commands(TyperGroup):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = cast("MutableMapping[str, Any]", Files())


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback(help="Tradeloom: a self-hosted trading platform. `tradeloom up` starts all of it.")
def every_command() -> None:
    """Does nothing; without it Typer would take `app`, which has no command of its own, for a mistake."""


def main() -> None:
    try:
        app()
    except StackError as error:
        print(f"tradeloom: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
