"""Puts every sealed secret's data key under the newest key-encryption key: `python -m services.users.rewrap`.

It takes the settings of the service, and leaves with 0 when nothing is left under an older key: those that were given
beside the newest can be taken away then, everywhere. It may be run at any time, and while the service runs.
"""

from libs.mesh.sealing import Outcome, run_rewrap
from libs.sealing import Sealer
from libs.store.database import Database
from services.users.rewrapping import Rewrapping
from services.users.settings import Settings


async def rewrap(worker: Database, sealer: Sealer) -> Outcome:
    return await Rewrapping(worker, sealer)()


if __name__ == "__main__":
    run_rewrap(Settings, rewrap)
