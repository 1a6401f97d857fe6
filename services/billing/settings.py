"""What an operator may turn, with the units in the names."""

from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, SecretStr

from libs.mesh.settings import ServiceSettings


class Settings(ServiceSettings):
    word: ClassVar[str] = "billing"

    # Both or neither: without them billing is in manual mode.
    stripe_secret_key: SecretStr = SecretStr("")
    stripe_webhook_secret: SecretStr = SecretStr("")
    stripe_api_base: str = "https://api.stripe.com"
    # Of one call to Stripe.
    stripe_timeout_seconds: PositiveFloat = 5.0
    # How old a signed event may be.
    stripe_tolerance_seconds: int = Field(default=300, gt=0, le=3_600)
    # Where people find the page, to which Stripe sends them back.
    public_url: str = "http://localhost:8080"
    # How long a plan still counts while a payment is overdue.
    grace_days: int = Field(default=7, ge=0, le=90)
    # How soon time and changed plans have their effect.
    poll_seconds: PositiveFloat = 5.0
    # For so long after the start, and after the machine's clock was set, nothing ends by time alone.
    clock_settle_seconds: PositiveFloat = 300.0

    @property
    def pays_at_stripe(self) -> bool:
        return bool(self.stripe_secret_key.get_secret_value())

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if self.pays_at_stripe != bool(self.stripe_webhook_secret.get_secret_value()):
            raise ValueError("BILLING_STRIPE_SECRET_KEY and BILLING_STRIPE_WEBHOOK_SECRET need each other")
