"""Files of key-encryption keys, and the command that puts what is sealed under the newest of them."""

import asyncio
import base64
import os
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

from tests.mesh import Installation

COMMAND_SECONDS = 60


def new_key() -> str:
    return base64.b64encode(os.urandom(32)).decode()


def write(file: Path, *entries: str) -> None:
    draft = file.with_name(f"draft-{uuid4()}")
    draft.write_text("\n".join(entries) + "\n")
    draft.replace(file)


def command(installation: Installation, word: str, file: Path) -> "subprocess.Popen[str]":
    """What an operator runs."""
    values = installation.values(word, key_encryption_keys="", key_encryption_keys_file=str(file))
    given = {f"{word.upper()}_{name.upper()}": value for name, value in values.items()}
    return subprocess.Popen(
        [sys.executable, "-m", f"services.{word}.rewrap"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **given},
    )


async def run(installation: Installation, word: str, file: Path) -> tuple[int, str]:
    """How the command ends, and the last it says."""
    process = command(installation, word, file)
    output, _ = await asyncio.to_thread(process.communicate, timeout=COMMAND_SECONDS)
    return process.returncode, output.strip().splitlines()[-1]
