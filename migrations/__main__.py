"""Runs Alembic: `python -m migrations orders upgrade head`, or `all` for every service in one process.

MIGRATIONS_DATABASE_URL names the owner role's database, in any of SQLAlchemy's spellings of postgresql://.
"""

import sys
from pathlib import Path

from alembic.config import CommandLine, Config

from libs import loading
from migrations import HERE, words


def config_for(word: str, folder: Path = HERE) -> Config:
    config = Config(attributes={"word": word})
    config.set_main_option("script_location", str(HERE))
    config.set_main_option("version_locations", str(folder / word))
    config.set_main_option("path_separator", "os")
    config.set_main_option("file_template", "%%(rev)s_%%(slug)s")
    return config


def main(word: str, *arguments: str, folder: Path = HERE) -> None:
    known = words(folder)
    if word not in ("all", *known):
        sys.exit(f"no service called {word} has tables; there are: {', '.join(known)}")
    for each in known if word == "all" else [word]:
        command_line = CommandLine(prog=f"python -m migrations {word}")
        command_line.run_cmd(config_for(each, folder), command_line.parser.parse_args(arguments))


if __name__ == "__main__":
    loading.end()
    if len(sys.argv) < 3:
        sys.exit("usage: python -m migrations <word>|all upgrade head")
    main(*sys.argv[1:])
