"""Puts auth's data key under the newest key-encryption key: `python -m services.auth.rewrap`.

It takes the settings of the service, and leaves with 0 when nothing is left under an older key: those that were given
beside the newest can be taken away then, everywhere. It may be run at any time, and while the service runs.
"""

from libs.mesh.sealing import run_rewrap
from services.auth.data_key import rewrap
from services.auth.settings import Settings

if __name__ == "__main__":
    run_rewrap(Settings, rewrap)
