"""Settings of a service that seals what rests in its database, and the command that puts it under a newer key."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr

from libs import loading
from libs.errors import Unavailable
from libs.mesh.settings import Environment, LogFormat, ServiceSettings
from libs.sealing import FileKeys, KeyEncryption, LocalKeys, Sealer, keys_from, open_vault
from libs.store.database import Database, open_database
from libs.store.revisions import check_revision
from libs.telemetry import logs

REWRAP_CONNECTIONS_MAX = 2


class SealingSettings(ServiceSettings):
    # Key-encryption keys for what is sealed here, in one of three ways. Entries `id:base64` of 32 bytes, newest first,
    # separated by commas: what is new is under the first, and each of the others opens what it sealed.
    key_encryption_keys: SecretStr = SecretStr("")
    # A file of such entries, one a line, read anew when it changes.
    key_encryption_keys_file: Path | None = None
    # The address of HashiCorp Vault or OpenBao, whose Transit engine keeps the key.
    vault_url: str = ""
    vault_token: SecretStr = SecretStr("")
    # Empty: tradeloom-<word>.
    vault_key_name: str = Field(default="", pattern="^[A-Za-z0-9_.-]*$")
    vault_mount: str = Field(default="transit", pattern="^[A-Za-z0-9_./-]+$")
    # Signs Vault's certificate; unset: a public authority.
    vault_authority_file: Path | None = None

    def model_post_init(self, context: Any, /) -> None:
        super().model_post_init(context)
        prefix, keys = self.word.upper(), self.key_encryption_keys.get_secret_value()
        if sum(map(bool, (keys, self.key_encryption_keys_file, self.vault_url))) != 1:
            raise ValueError(
                f"exactly one of {prefix}_KEY_ENCRYPTION_KEYS, {prefix}_KEY_ENCRYPTION_KEYS_FILE and {prefix}_VAULT_URL"
                " is needed"
            )
        if keys:
            keys_from(keys, allow_development=self.allow_development)
        if self.vault_url and not self.vault_token.get_secret_value():
            raise ValueError(f"{prefix}_VAULT_URL needs {prefix}_VAULT_TOKEN")
        if self.vault_url and not self.allow_development and not self.vault_url.startswith("https://"):
            raise ValueError("ENVIRONMENT=production asks Vault over https:// only")

    @property
    def allow_development(self) -> bool:
        return self.environment is not Environment.PRODUCTION


@asynccontextmanager
async def open_keys(settings: SealingSettings) -> AsyncIterator[KeyEncryption]:
    """Who keeps the key-encryption keys, as the settings say."""
    if settings.vault_url:
        async with open_vault(
            url=settings.vault_url,
            token=settings.vault_token.get_secret_value(),
            key_name=settings.vault_key_name or f"tradeloom-{settings.word}",
            mount=settings.vault_mount,
            authority=settings.vault_authority_file,
        ) as vault:
            yield vault
    elif settings.key_encryption_keys_file:
        yield FileKeys(settings.key_encryption_keys_file, allow_development=settings.allow_development)
    else:
        text = settings.key_encryption_keys.get_secret_value()
        yield LocalKeys(keys_from(text, allow_development=settings.allow_development))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of putting data keys under the newest key-encryption key."""

    newest: str
    rewrapped: int
    failed: int
    """Those that could not be opened; the log names them."""
    left: dict[str, int]
    """How many are still under each other key."""


Rewrap = Callable[[Database, Sealer], Awaitable[Outcome]]
"""The database is of the worker role. Raises KeysUnavailable where nobody can say which key is the newest."""


def run_rewrap(settings_type: type[SealingSettings], rewrap: Rewrap) -> None:
    """The command `python -m services.<word>.rewrap`: leaves with 0 when nothing is left under an older key."""
    loading.end()
    settings = settings_type()  # type: ignore[call-arg] (its values come from the environment)
    logs.set_up(settings.word, as_json=settings.log_format is LogFormat.JSON)

    async def work() -> Outcome:
        async with (
            open_database(settings.worker_database_url.get_secret_value(), REWRAP_CONNECTIONS_MAX) as worker,
            open_keys(settings) as keys,
        ):
            async with worker.transaction() as rows:
                await check_revision(rows, settings.word)
            return await rewrap(worker, Sealer(keys))

    try:
        outcome = asyncio.run(work())
    except Unavailable as error:
        sys.exit(f"it was not finished, run it again: {error}")
    print(said(outcome))  # noqa: T201 (a command)
    sys.exit(1 if outcome.left else 0)


def said(outcome: Outcome) -> str:
    done = f"{outcome.rewrapped} data keys were put under {outcome.newest}"
    if outcome.failed:
        done += f", {outcome.failed} could not be opened"
    if not outcome.left:
        return f"{done}; none is left under another key"
    left = ", ".join(f"{count} under {key_id}" for key_id, count in outcome.left.items())
    return f"{done}; left are {left}: keep those keys, and run this again"
