"""Rotates the key that signs access tokens, so that nobody notices: published first, then signing, then withdrawn."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from libs.mesh.identity import CLOCK_SKEW_SECONDS, Verifier
from libs.store.database import Connection, Database
from services.auth import store
from services.auth.keys import ACCESS, AUDIT, KeyBox, Signer, StoredKey


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """Of one replica. What rests in the database is all replicas'; each reads it before the others publish what is new.

    When a key signs is decided by the database's clock, which is one for all.
    """

    database: Database
    box: KeyBox
    signer: Signer
    verifier: Verifier
    key_days: float
    """How long a key signs before another does."""
    lead_seconds: float
    """How long a key is published before it signs: until then everybody has fetched it."""

    async def follow(self) -> None:
        """Takes the keys as they are now, making what is missing or due."""
        async with self.database.transaction() as rows:
            keys, now = await store.signing_keys(rows), await store.clock(rows)
            if self._wanted(keys, now):
                await store.lock_signing_keys(rows)
                for purpose in self._wanted(await store.signing_keys(rows), now):
                    await self._add(rows, purpose, now)
                keys = await store.signing_keys(rows)
        self.signer.use(keys)
        self.verifier.use(self.signer.public_keys())

    async def begin(self, rows: Connection) -> tuple[str, datetime]:
        """The key that will sign, and from when on; of a rotation that is under way already, its."""
        await store.lock_signing_keys(rows)
        now = await store.clock(rows)
        newest = self._newest(await store.signing_keys(rows), now)
        if newest is None or newest.sign_time <= now:
            newest = await self._add(rows, ACCESS, now)
        return newest.key_id, newest.sign_time

    def _newest(self, keys: tuple[StoredKey, ...], now: datetime) -> StoredKey | None:
        """Of those that sign, or will soon: one from a clock that was far ahead keeps no other from being made."""
        soon = now + timedelta(seconds=self.lead_seconds)
        access = [key for key in keys if key.purpose == ACCESS and key.sign_time <= soon]
        return max(access, key=lambda key: key.sign_time, default=None)

    def _wanted(self, keys: tuple[StoredKey, ...], now: datetime) -> list[str]:
        """For which purposes a key is to be made now."""
        newest, wanted = self._newest(keys, now), []
        if newest is None or now - newest.sign_time > timedelta(days=self.key_days):
            wanted.append(ACCESS)
        if not any(key.purpose == AUDIT for key in keys):
            wanted.append(AUDIT)
        return wanted

    async def _add(self, rows: Connection, purpose: str, now: datetime) -> StoredKey:
        """The first of its purpose is used at once; a later one when everybody knows it."""
        before = [key for key in await store.signing_keys(rows) if key.purpose == purpose]
        sign_time = now + timedelta(seconds=self.lead_seconds) if before else now
        key = self.box.new(sign_time, purpose)
        await store.add_signing_key(rows, key)
        # Until the last token of theirs has expired everywhere. A replica that did not hear of the new key in time goes
        # on with the old one for no longer than it takes to follow.
        life = timedelta(seconds=self.signer.access_token_seconds + self.lead_seconds + CLOCK_SKEW_SECONDS)
        await store.retire_signing_keys(rows, [one.key_id for one in before], sign_time + life)
        return key
