"""Opaque page tokens: where the previous page ended."""

import base64
import binascii
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from libs.errors import Invalid


class PageTokenInvalid(Invalid):
    """The page token is not one that was given out."""

    reason = "PAGE_TOKEN_INVALID"


def token_after(*key: str | int) -> str:
    """The token of the page that starts after this key."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def key_of(token: str, parts: int) -> Sequence[str | int] | None:
    """The key a token stands for; None for the first page."""
    if not token:
        return None
    try:
        key = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError):
        key = None
    if not isinstance(key, list) or len(key) != parts or not all(map(_is_sound, key)):
        raise PageTokenInvalid({"page_token": "is not one that was given out"})
    return key


def _is_sound(part: object) -> bool:
    """Whether Postgres can be asked for it: no integer beyond its largest, no text that it cannot keep."""
    if isinstance(part, str):
        return "\0" not in part and part.encode(errors="replace").decode() == part
    return isinstance(part, int) and -(2**63) <= part < 2**63


def size_of(asked: int, usual: int) -> int:
    """The page size to use; the contract's rules bound what may be asked."""
    return asked or usual


def uuid_after(token: str) -> UUID | None:
    """The id a token stands for; None for the first page."""
    key = key_of(token, 1)
    try:
        return UUID(str(key[0])) if key else None
    except ValueError:
        raise PageTokenInvalid({"page_token": "is not one that was given out"}) from None


def number_after(token: str) -> int:
    """The number a token stands for; 0 for the first page."""
    key = key_of(token, 1)
    if key and not isinstance(key[0], int):
        raise PageTokenInvalid({"page_token": "is not one that was given out"})
    return int(key[0]) if key else 0


def time_and_uuid_after(token: str) -> tuple[datetime, UUID] | None:
    """The time in ISO 8601 and the id that a token stands for; None for the first page."""
    key = key_of(token, 2)
    try:
        return (datetime.fromisoformat(str(key[0])).astimezone(UTC), UUID(str(key[1]))) if key else None
    except (ValueError, OverflowError):
        raise PageTokenInvalid({"page_token": "is not one that was given out"}) from None
