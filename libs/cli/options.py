"""Options that several commands share."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from libs.stack.errors import StackError
from libs.stack.folder import FOLDER_VARIABLE, DataFolder
from libs.stack.state import Snapshot, running

STOPPED_EXIT_CODE = 130
"""Of a command that Ctrl-C has stopped, as shells have it."""

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir",
        help="Where everything is kept; .tradeloom here unless said otherwise.",
        envvar=FOLDER_VARIABLE,
        file_okay=False,
    ),
]

Port = Annotated[
    int | None,
    typer.Option(
        help="The edge's port; 8080, or another if taken, unless said. 0: any, for everything.", min=0, max=65_535
    ),
]


def running_stack(data_dir: Path | None) -> Snapshot:
    """What runs there; raises StackError when nothing does."""
    folder = DataFolder.at(data_dir)
    snapshot = running(folder)
    if snapshot is None:
        raise StackError(f"nothing runs in {folder.path}; start it with `tradeloom up`")
    return snapshot


def time_of(text: str, option: str) -> datetime | None:
    """What was given for the option, in UTC where it has no offset; None where nothing was."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise StackError(f"{option} is no time such as 2024-01-31 or 2024-01-31T10:00Z: {text}") from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
