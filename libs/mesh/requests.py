"""One effect per request_id: the same request gets the first answer again, another body is refused."""

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import Message

from libs.errors import RequestIdReused
from libs.mesh import identity
from libs.mesh.contract import without_secrets
from libs.store import requests
from libs.store.database import Connection, Database
from libs.store.requests import RequestKey

DIGEST_BYTES = 16

Response = TypeVar("Response", bound=Message)


def key_of(request: Message, *, user_id: UUID | None = None, digest_key: bytes = b"") -> RequestKey:
    """Who asks for what, under which request_id; by default the caller being served.

    digest_key, at most 64 bytes, is needed where the request holds a secret, so that what is stored does not help guess it.
    """
    content = request.__class__()
    content.CopyFrom(request)
    content.DiscardUnknownFields()  # type: ignore[attr-defined] (missing in the stubs)
    digest = hashlib.blake2b(content.SerializeToString(deterministic=True), digest_size=DIGEST_BYTES, key=digest_key)
    return RequestKey(
        user_id=user_id or identity.current().user_id,
        method=request.DESCRIPTOR.full_name.removesuffix("Request"),
        request_id=request.request_id,  # type: ignore[attr-defined] (every mutating request has one; a test proves it)
        digest=digest.digest(),
    )


def recorded(response: Message) -> bytes:
    """The answer as it is kept for repeats: without secrets, which are shown once."""
    kept = response.__class__()
    kept.CopyFrom(response)
    without_secrets(kept)
    return kept.SerializeToString()


async def first_answer(rows: Connection, key: RequestKey, response_type: type[Response]) -> Response | None:
    """What the same request was answered before: for what is not to ask others, or be judged, once more.

    Raises RequestIdReused.
    """
    found = (await requests.find(rows, [key])).get(key)
    if isinstance(found, RequestIdReused):
        raise found
    return None if found is None else response_type.FromString(found)


async def answer_once(
    database: Database,
    key: RequestKey,
    response_type: type[Response],
    work: Callable[[Connection], Awaitable[Response]],
    *,
    also: Sequence[UUID] = (),
) -> Response:
    """Does the work and records its answer in one transaction, or returns the first answer.

    The first caller gets the answer whole; repeats get it without its secrets. The transaction sees the key's user,
    and those in `also`.
    """
    fresh: list[Response] = []

    async def recording(rows: Connection) -> bytes:
        fresh[:] = [await work(rows)]
        return recorded(fresh[0])

    answer = await requests.once(database, key, recording, also=also)
    return fresh[0] if fresh else response_type.FromString(answer)
