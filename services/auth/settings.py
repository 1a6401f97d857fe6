"""What an operator may turn, with the units in the names."""

import base64
from typing import Any, ClassVar

from pydantic import Field, SecretStr, field_validator

from libs.mesh.sessions import TOKEN_SECONDS_MAX
from libs.mesh.settings import ServiceSettings

KEY_BYTES = 32
# As the contract asks of everyone.
PASSWORD_CHARACTERS_MIN = 12


class Settings(ServiceSettings):
    word: ClassVar[str] = "auth"

    # Base64 of 32 bytes; encrypts signing keys at rest.
    key_encryption_key: SecretStr
    access_token_seconds: int = Field(default=900, gt=0, le=TOKEN_SECONDS_MAX)
    refresh_token_days: int = 30
    revocation_heartbeat_seconds: float = 2.0
    revocation_poll_seconds: float = 0.5
    # An account's failed logins are told together, at most so often.
    failed_logins_told_seconds: float = 30.0
    # Password hashes computed at once; each takes 64 MiB and a processor for some tens of milliseconds.
    password_hashes_at_once_max: int = 2
    # Logins that may wait for one of them; more are refused.
    password_hashes_waiting_max: int = 64
    # The first administrator, made at the start if there is nobody with this address.
    admin_email: str = ""
    admin_password: SecretStr = SecretStr("")

    @field_validator("key_encryption_key")
    @classmethod
    def is_a_key(cls, value: SecretStr) -> SecretStr:
        if len(base64.b64decode(value.get_secret_value(), validate=True)) != KEY_BYTES:
            raise ValueError(f"AUTH_KEY_ENCRYPTION_KEY must be the base64 of {KEY_BYTES} bytes")
        return value

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if self.admin_email and len(self.admin_password.get_secret_value()) < PASSWORD_CHARACTERS_MIN:
            raise ValueError(f"AUTH_ADMIN_PASSWORD needs at least {PASSWORD_CHARACTERS_MIN} characters")
