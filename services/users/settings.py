"""What an operator may turn, with the units in the names."""

from typing import ClassVar

from pydantic import NonNegativeFloat, PositiveFloat

from libs.mesh.sealing import SealingSettings


class Settings(SealingSettings):
    word: ClassVar[str] = "users"

    order_router_url: str = "127.0.0.1:18015"
    execution_service_url: str = "127.0.0.1:18018"
    billing_service_url: str = "127.0.0.1:18013"

    # How long somebody who asked to be deleted may change their mind.
    deletion_grace_days: NonNegativeFloat = 30.0
    # And has at the least to download their data once it is ready, however late that was.
    deletion_download_days: NonNegativeFloat = 7.0
    # The time must have come for so long, so that a clock that was set wrong for less deletes nobody.
    deletion_confirm_seconds: NonNegativeFloat = 3600.0
    export_kept_days: PositiveFloat = 30.0
    # Between two tests of one credential, whichever replica is asked.
    credential_test_pause_seconds: NonNegativeFloat = 10.0
    # Before an export that failed is tried again, the first time; then longer and longer, up to ten minutes.
    export_retry_seconds: PositiveFloat = 5.0

    @property
    def addresses(self) -> dict[str, str]:
        """Where the services are that this one may ask, by word."""
        return {
            "auth": self.auth_service_url,
            "billing": self.billing_service_url,
            "execution": self.execution_service_url,
            "orders": self.order_router_url,
        }
