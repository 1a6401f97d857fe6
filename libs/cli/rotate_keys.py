"""`tradeloom rotate-keys`: new keys over everything that auth and users keep sealed."""

import asyncio

import typer

from libs.cli.options import DataDir, running_stack
from libs.stack.credentials import SEALING
from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.rotation import rotate

app = typer.Typer(add_completion=False)


@app.command()
def rotate_keys(data_dir: DataDir = None) -> None:
    """Put what auth and users keep sealed under new key-encryption keys, while the stack runs."""
    snapshot = running_stack(data_dir)
    words = [word for word in SEALING if word in snapshot.words]
    if not words:
        raise StackError("neither auth nor users runs here; nothing is sealed")
    for word in words:
        print(f"{word}: {asyncio.run(rotate(word, DataFolder.at(data_dir), snapshot))}")
