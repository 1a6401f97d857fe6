"""What an operator may turn, with the units in the names."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, field_validator

from libs.mail import Smtp
from libs.mesh.sealing import SealingSettings
from libs.mesh.sessions import TOKEN_SECONDS_MAX
from libs.tokens import KEYS_LEAD_SECONDS

# As the contract asks of everyone.
PASSWORD_CHARACTERS_MIN = 12


class Settings(SealingSettings):
    word: ClassVar[str] = "auth"

    access_token_seconds: int = Field(default=900, gt=0, le=TOKEN_SECONDS_MAX)
    # How long a session goes on without a refresh ...
    refresh_token_days: PositiveInt = 30
    # ... and how long however often it is refreshed: then its owner signs in again.
    session_days_max: PositiveInt = 90
    revocation_heartbeat_seconds: float = 2.0
    revocation_poll_seconds: float = 0.5
    # An account's failed logins are told together, at most so often.
    failed_logins_told_seconds: float = 30.0
    # How long a key signs access tokens before another does.
    signing_key_days: PositiveFloat = 30.0
    # How long a new key is published before it signs: until everybody, the edge too, has fetched it.
    signing_key_lead_seconds: float = KEYS_LEAD_SECONDS
    # Between two looks at the keys of the other replicas; far below the lead.
    signing_key_poll_seconds: PositiveFloat = 10.0
    # Where people find the page; links in mails begin with it.
    public_url: str = "http://localhost:8080"
    # smtp://user:password@host:587 (with STARTTLS) or smtps://…; without it mails are written to mail_folder, and in
    # development their links to the log.
    smtp_url: SecretStr = SecretStr("")
    mail_folder: Path | None = None
    mail_from: str = "Tradeloom <no-reply@tradeloom.local>"
    # Password hashes computed at once; each takes 64 MiB and a processor for some tens of milliseconds.
    password_hashes_at_once_max: int = 2
    # Logins that may wait for one of them; more are refused.
    password_hashes_waiting_max: int = 64
    # The first administrator, made at the start if there is nobody with this address.
    admin_email: str = ""
    admin_password: SecretStr = SecretStr("")

    @field_validator("smtp_url")
    @classmethod
    def is_a_mail_server(cls, value: SecretStr) -> SecretStr:
        if value.get_secret_value():
            try:
                Smtp(value.get_secret_value(), "")
            except ValueError as error:
                raise ValueError(f"AUTH_SMTP_URL {error}") from None
        return value

    @field_validator("public_url")
    @classmethod
    def is_without_a_slash(cls, value: str) -> str:
        return value.rstrip("/")

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        if self.admin_email and len(self.admin_password.get_secret_value()) < PASSWORD_CHARACTERS_MIN:
            raise ValueError(f"AUTH_ADMIN_PASSWORD needs at least {PASSWORD_CHARACTERS_MIN} characters")
        if self.mail_folder is None and not self.smtp_url.get_secret_value():
            raise ValueError("AUTH_SMTP_URL is needed, or AUTH_MAIL_FOLDER for one machine and its owner")
