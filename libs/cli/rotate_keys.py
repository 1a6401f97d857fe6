"""`tradeloom rotate-keys`: a new key over everything that users keeps sealed."""

import asyncio

import typer

from libs.cli.options import DataDir, running_stack
from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.rotation import rotate

app = typer.Typer(add_completion=False)


@app.command()
def rotate_keys(data_dir: DataDir = None) -> None:
    """Put broker credentials and exports under a new key-encryption key, while the stack runs."""
    snapshot = running_stack(data_dir)
    if "users" not in snapshot.words:
        raise StackError("users does not run here; nothing is sealed")
    print(asyncio.run(rotate(DataFolder.at(data_dir), snapshot)))
