"""The one key under which auth seals whatever is secret in its database; it rests wrapped by a key-encryption key.

A process opens it at its start and needs no key-encryption key afterwards. So that one is replaced by wrapping the data
key anew, beside live traffic, and nothing that was sealed or hashed under the data key is touched.
"""

import os

import structlog

from libs.mesh.sealing import Outcome
from libs.sealing import KEY_BYTES, KeysUnavailable, Sealer, Unsealable, WrappedKey, context_of
from libs.store.database import Connection, Database
from services.auth import store

CONTEXT = context_of("auth data key")

log = structlog.get_logger(__name__)


class DataKeyLost(Exception):
    """What was sealed under it can be opened no more: the database has to be put back whole."""


async def open_data_key(database: Database, sealer: Sealer) -> bytes:
    """The installation's, made by the replica that comes first.

    Raises KeysUnavailable; DataKeyLost where signing keys are there and what they are sealed under is not; Unsealable
    for one that was changed.
    """
    async with database.transaction() as rows:
        wrapped = await store.data_key(rows)
    if wrapped is None:
        fresh = await sealer.keys.wrap(os.urandom(KEY_BYTES), CONTEXT)
        async with database.transaction() as rows:
            await store.lock_signing_keys(rows)
            wrapped = await store.data_key(rows)
            if wrapped is None:
                await _refuse_second(rows)
                await store.add_data_key(rows, fresh)
                wrapped = fresh
    return await sealer.keys.unwrap(wrapped, CONTEXT)


async def _refuse_second(rows: Connection) -> None:
    if await store.signing_keys(rows):
        raise DataKeyLost("there are signing keys, and not the data key they are sealed under")


async def rewrap(worker: Database, sealer: Sealer) -> Outcome:
    """Killed at any point, or run twice at once, the data key stays readable under a key that was named."""
    newest = await sealer.keys.newest()
    async with worker.transaction() as rows:
        wrapped = await store.data_key(rows)
    if wrapped is None or wrapped.key_id == newest:
        return Outcome(newest=newest, rewrapped=0, failed=0, left={})
    rewrapped = failed = 0
    try:
        anew = await sealer.rewrap(wrapped, CONTEXT)
    except (Unsealable, KeysUnavailable) as error:
        log.error("the data key cannot be rewrapped", error=str(error))  # noqa: TRY400 (its trace says no more)
        failed = 1
    else:
        async with worker.transaction() as rows:
            rewrapped = await store.replace_data_key(rows, wrapped, anew)
    async with worker.transaction() as rows:
        now_kept: WrappedKey | None = await store.data_key(rows)
    left = {now_kept.key_id: 1} if now_kept is not None and now_kept.key_id != newest else {}
    return Outcome(newest=newest, rewrapped=rewrapped, failed=failed, left=left)
