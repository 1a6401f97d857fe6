"""What an operator may turn, with the units in the names."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat, SecretStr

from libs.mesh.settings import Environment, ServiceSettings
from libs.sealing import keys_from


class Settings(ServiceSettings):
    word: ClassVar[str] = "users"

    # Key-encryption keys for what is sealed here, in one of three ways. Entries `id:base64` of 32 bytes, newest first,
    # separated by commas: new secrets are under the first, and each of the others opens what it sealed.
    key_encryption_keys: SecretStr = SecretStr("")
    # A file of such entries, one a line, read anew when it changes.
    key_encryption_keys_file: Path | None = None
    # The address of HashiCorp Vault or OpenBao, whose Transit engine keeps the key.
    vault_url: str = ""
    vault_token: SecretStr = SecretStr("")
    vault_key_name: str = Field(default="tradeloom-users", pattern="^[A-Za-z0-9_.-]+$")
    vault_mount: str = Field(default="transit", pattern="^[A-Za-z0-9_./-]+$")
    # Signs Vault's certificate; unset: a public authority.
    vault_authority_file: Path | None = None

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
    # Before an export that failed is tried again, the first time; then longer and longer, up to ten minutes.
    export_retry_seconds: PositiveFloat = 5.0

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        keys = self.key_encryption_keys.get_secret_value()
        if sum(map(bool, (keys, self.key_encryption_keys_file, self.vault_url))) != 1:
            raise ValueError(
                "exactly one of USERS_KEY_ENCRYPTION_KEYS, USERS_KEY_ENCRYPTION_KEYS_FILE and USERS_VAULT_URL is needed"
            )
        if keys:
            keys_from(keys, allow_development=self.allow_development)
        if self.vault_url and not self.vault_token.get_secret_value():
            raise ValueError("USERS_VAULT_URL needs USERS_VAULT_TOKEN")
        if self.vault_url and not self.allow_development and not self.vault_url.startswith("https://"):
            raise ValueError("ENVIRONMENT=production asks Vault over https:// only")

    @property
    def allow_development(self) -> bool:
        return self.environment is not Environment.PRODUCTION

    @property
    def addresses(self) -> dict[str, str]:
        """Where the services are that this one may ask, by word."""
        return {
            "auth": self.auth_service_url,
            "billing": self.billing_service_url,
            "execution": self.execution_service_url,
            "orders": self.order_router_url,
        }
