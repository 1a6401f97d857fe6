"""The database's history: one folder and one straight line of files per service, `0001_….py`, `0002_….py`."""

from pathlib import Path

from libs import loading

loading.begin()

HERE = Path(__file__).parent


def heads(word: str, folder: Path = HERE) -> str:
    """The newest revision of a service, such as "0002"; known from the names of its files, without loading Alembic."""
    return max(file.name.split("_")[0] for file in (folder / word).glob("[0-9][0-9][0-9][0-9]_*.py"))


def words(folder: Path = HERE) -> list[str]:
    """The services that have tables."""
    return sorted({file.parent.name for file in folder.glob("*/[0-9][0-9][0-9][0-9]_*.py")})
