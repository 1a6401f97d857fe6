"""Who keeps the key-encryption keys, as the settings say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from libs.sealing import FileKeys, KeyEncryption, LocalKeys, keys_from, open_vault
from services.users.settings import Settings


@asynccontextmanager
async def open_keys(settings: Settings) -> AsyncIterator[KeyEncryption]:
    if settings.vault_url:
        async with open_vault(
            url=settings.vault_url,
            token=settings.vault_token.get_secret_value(),
            key_name=settings.vault_key_name,
            mount=settings.vault_mount,
            authority=settings.vault_authority_file,
        ) as vault:
            yield vault
    elif settings.key_encryption_keys_file:
        yield FileKeys(settings.key_encryption_keys_file, allow_development=settings.allow_development)
    else:
        text = settings.key_encryption_keys.get_secret_value()
        yield LocalKeys(keys_from(text, allow_development=settings.allow_development))
