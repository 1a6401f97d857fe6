"""The chain of audit events: how each holds the hash of the one before, and how an export is proved untouched.

    digest = SHA-256(salt ‖ detail)
    hash   = SHA-256(MARK ‖ hash before ‖ user ‖ sequence ‖ time ‖ source ‖ kind ‖ digest)

The hash before the first is 32 zero bytes; user is 16 bytes, sequence and time (microseconds since 1970 UTC) are 8 bytes
big-endian, source and kind are UTF-8 behind their length in 2 bytes. Emptying salt and detail, as a purge of personal
data does, leaves every hash as it was: the salt keeps the digest from telling what was there. A purge empties all there
is and says so in a record of its own: without it, or beside records that are not emptied, nobody may have emptied one.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MARK = b"tradeloom-audit-1"
BEFORE_FIRST = bytes(32)
SALT_BYTES = 16
ALGORITHM = "EdDSA"
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FORMAT = "tradeloom-audit-export-1"
PURGE = ("users", "tradeloom.users.v1.UserPurged")
"""Source and kind of the record that a purge of personal data leaves; both are hashed."""


class Tampered(Exception):
    """The export is not what was recorded; says where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One record; salt and detail are empty once personal data was purged."""

    sequence: int
    time: datetime
    source: str
    kind: str
    detail: str
    salt: bytes
    digest: bytes
    hash: bytes

    @property
    def is_emptied(self) -> bool:
        return not self.salt and not self.detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The end of a chain; sequence 0 and BEFORE_FIRST for an empty one."""

    user_id: UUID
    sequence: int
    hash: bytes
    signature: str = ""


def digest_of(salt: bytes, detail: str) -> bytes:
    return hashlib.sha256(salt + detail.encode()).digest()


def hash_of(
    before: bytes, user_id: UUID, *, sequence: int, time: datetime, source: str, kind: str, digest: bytes
) -> bytes:
    parts = [
        MARK,
        before,
        user_id.bytes,
        sequence.to_bytes(8, "big"),
        ((time - EPOCH) // timedelta(microseconds=1)).to_bytes(8, "big"),
        *(len(text.encode()).to_bytes(2, "big") + text.encode() for text in (source, kind)),
        digest,
    ]
    return hashlib.sha256(b"".join(parts)).digest()


def next_event(
    end: Checkpoint, *, time: datetime, source: str, kind: str, detail: str, salt: bytes
) -> tuple[Event, Checkpoint]:
    """The record that follows the end of a chain, and the end after it."""
    sequence, digest = end.sequence + 1, digest_of(salt, detail)
    hashed = hash_of(end.hash, end.user_id, sequence=sequence, time=time, source=source, kind=kind, digest=digest)
    event = Event(
        sequence=sequence, time=time, source=source, kind=kind, detail=detail, salt=salt, digest=digest, hash=hashed
    )
    return event, Checkpoint(user_id=end.user_id, sequence=sequence, hash=hashed)


def signed(end: Checkpoint, key: Ed25519PrivateKey, key_id: str) -> str:
    """The checkpoint's JWS."""
    return jwt.encode(claims_of(end), key, algorithm=ALGORITHM, headers={"kid": key_id, "typ": "audit+jws"})


def claims_of(end: Checkpoint) -> dict[str, Any]:
    return {"user_id": str(end.user_id), "sequence": end.sequence, "hash": encoded(end.hash)}


def encoded(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


class Chain:
    """Follows a chain from its beginning, one event at a time."""

    def __init__(self, user_id: UUID) -> None:
        self._user_id, self._before = user_id, BEFORE_FIRST
        self.count = 0
        self.emptied_count = 0
        self._first_emptied = 0
        self._is_purged = False

    def follow(self, event: Event) -> None:
        """Raises Tampered unless the event is what was recorded next."""
        where = f"record {event.sequence}"
        if event.sequence != self.count + 1:
            raise Tampered(f"record {self.count + 1} is missing: {where} stands in its place")
        if event.is_emptied:
            self.emptied_count += 1
            self._first_emptied = self._first_emptied or event.sequence
        elif digest_of(event.salt, event.detail) != event.digest:
            raise Tampered(f"{where}: its detail was changed")
        hashed = hash_of(
            self._before,
            self._user_id,
            sequence=event.sequence,
            time=event.time,
            source=event.source,
            kind=event.kind,
            digest=event.digest,
        )
        if hashed != event.hash:
            raise Tampered(f"{where}: it was changed, or one before it")
        self._before = hashed
        self.count += 1
        if (event.source, event.kind) == PURGE and self.emptied_count == self.count:
            self._is_purged = True

    def end(self, end: Checkpoint) -> None:
        """Raises Tampered unless the chain that was followed ends there, and what is emptied was so by a purge."""
        if (self.count, self._before) != (end.sequence, end.hash):
            raise Tampered(f"the chain was signed up to record {end.sequence}, and ends here with record {self.count}")
        if self.emptied_count and not self._is_purged:
            raise Tampered(
                f"record {self._first_emptied}: it was emptied, and not by a purge, which empties all before it"
            )


def check_signature(end: Checkpoint, keys: Mapping[str, Ed25519PublicKey]) -> str:
    """The id of the key that signed the end of the chain. Raises Tampered."""
    try:
        key_id = str(jwt.get_unverified_header(end.signature)["kid"])
        if key_id not in keys:
            raise Tampered(f"it was signed by the key {key_id}, which is not among those that are trusted")
        # None of the claims is about time: an export is as good in years.
        claims = jwt.decode(end.signature, keys[key_id], algorithms=[ALGORITHM])
    except (jwt.InvalidTokenError, KeyError) as error:
        raise Tampered(f"the signature of its end is wrong: {error}") from error
    if claims != claims_of(end):
        raise Tampered("the signature of its end is of another end")
    return key_id


# An export: a line of JSON for the head, one for each record, and one for the end.


def head_line(user_id: UUID, keys: Sequence[Mapping[str, str]]) -> str:
    """Keys are the JSON web keys of which one has signed the end."""
    return json.dumps({"format": FORMAT, "user_id": str(user_id), "keys": list(keys)})


def record_line(event: Event) -> str:
    return json.dumps(
        {
            "sequence": event.sequence,
            "time": event.time.astimezone(UTC).isoformat(timespec="microseconds"),
            "source": event.source,
            "kind": event.kind,
            "detail": event.detail,
            "salt": encoded(event.salt),
            "digest": encoded(event.digest),
            "hash": encoded(event.hash),
        }
    )


def end_line(end: Checkpoint) -> str:
    return json.dumps({"sequence": end.sequence, "hash": encoded(end.hash), "signature": end.signature})


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What an export was proved to be."""

    user_id: UUID
    record_count: int
    emptied_count: int
    key_id: str


def verify_export(lines: Iterable[str], keys: Sequence[Mapping[str, str]] | None = None) -> Verified:
    """Proves an export untouched, reading one line at a time. Raises Tampered.

    keys are JSON web keys that the reader trusts; without them those in the export's own head are believed, which
    proves only that it is whole and was signed by them.
    """
    user_id: UUID | None = None
    chain: Chain | None = None
    trusted: Mapping[str, Ed25519PublicKey] = {}
    end: Checkpoint | None = None
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            if end is not None:
                raise Tampered(f"line {number}: something follows the end")
            if user_id is None or chain is None:
                if fields["format"] != FORMAT:
                    raise Tampered(f"it is no export of the format {FORMAT}")
                user_id = UUID(fields["user_id"])
                chain, trusted = Chain(user_id), public_keys(fields["keys"] if keys is None else keys)
            elif "signature" in fields:
                end = checkpoint_from(user_id, fields)
            else:
                chain.follow(event_from(fields))
        except (KeyError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise Tampered(f"line {number}: it is not what an export has there") from error
    if user_id is None or chain is None or end is None:
        raise Tampered("its end is missing")
    chain.end(end)
    key_id = check_signature(end, trusted)
    return Verified(user_id=user_id, record_count=chain.count, emptied_count=chain.emptied_count, key_id=key_id)


def event_from(fields: Mapping[str, Any]) -> Event:
    return Event(
        sequence=int(fields["sequence"]),
        time=datetime.fromisoformat(fields["time"]),
        source=fields["source"],
        kind=fields["kind"],
        detail=fields["detail"],
        salt=base64.b64decode(fields["salt"], validate=True),
        digest=base64.b64decode(fields["digest"], validate=True),
        hash=base64.b64decode(fields["hash"], validate=True),
    )


def checkpoint_from(user_id: UUID, fields: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(
        user_id=user_id,
        sequence=int(fields["sequence"]),
        hash=base64.b64decode(fields["hash"], validate=True),
        signature=str(fields["signature"]),
    )


def public_keys(keys: Iterable[Mapping[str, str]]) -> dict[str, Ed25519PublicKey]:
    """JSON web keys of RFC 8037 by their ids."""
    return {
        key["kid"]: Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(key["x"] + "=" * (-len(key["x"]) % 4)))
        for key in keys
    }
