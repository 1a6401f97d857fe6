"""Puts every sealed secret's data key under the newest key-encryption key: `python -m services.users.rewrap`.

It takes the settings of the service, and leaves with 0 when nothing is left under an older key: those that were given
beside the newest can be taken away then, everywhere. It may be run at any time, and while the service runs.
"""

import asyncio
import sys

from libs.errors import Unavailable
from libs.mesh.settings import LogFormat
from libs.sealing import Sealer
from libs.store.database import open_database
from libs.store.revisions import check_revision
from libs.telemetry import logs
from services.users.keys import open_keys
from services.users.rewrapping import Outcome, Rewrapping
from services.users.settings import Settings

CONNECTIONS_MAX = 2


async def rewrap(settings: Settings) -> Outcome:
    async with (
        open_database(settings.worker_database_url.get_secret_value(), CONNECTIONS_MAX) as worker,
        open_keys(settings) as keys,
    ):
        async with worker.transaction() as rows:
            await check_revision(rows, settings.word)
        return await Rewrapping(worker, Sealer(keys))()


def said(outcome: Outcome) -> str:
    done = f"{outcome.rewrapped} secrets were put under {outcome.newest}"
    if outcome.failed:
        done += f", {outcome.failed} could not be opened"
    if not outcome.left:
        return f"{done}; none is left under another key"
    left = ", ".join(f"{count} under {key_id}" for key_id, count in outcome.left.items())
    return f"{done}; left are {left}: keep those keys, and run this again"


def main() -> None:
    settings = Settings()  # type: ignore[call-arg] (its values come from the environment)
    logs.set_up(settings.word, as_json=settings.log_format is LogFormat.JSON)
    try:
        outcome = asyncio.run(rewrap(settings))
    except Unavailable as error:
        sys.exit(f"it was not finished, run it again: {error}")
    print(said(outcome))  # noqa: T201 (a command)
    sys.exit(1 if outcome.left else 0)


if __name__ == "__main__":
    main()
