"""Audit exports: whatever is changed, left out, added or cut off is noticed, and a purge is not taken for it."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from libs import audit
from libs.audit import BEFORE_FIRST, Checkpoint, Event, Tampered
from libs.ids import uuid7

USER = uuid7()
KEY = Ed25519PrivateKey.generate()
START = datetime(2026, 1, 1, tzinfo=UTC)


def jwk(key: Ed25519PrivateKey, key_id: str = "k") -> dict[str, str]:
    import base64

    raw = key.public_key().public_bytes_raw()
    return {"kty": "OKP", "crv": "Ed25519", "kid": key_id, "x": base64.urlsafe_b64encode(raw).decode().rstrip("=")}


def chain(count: int, *, emptied: Sequence[int] = (), purge: int = 0) -> tuple[list[Event], Checkpoint]:
    """Purge is the number of the record that says so."""
    end, events = Checkpoint(user_id=USER, sequence=0, hash=BEFORE_FIRST), []
    for number in range(count):
        event, end = audit.next_event(
            end,
            time=START + timedelta(microseconds=number),
            source="users" if number + 1 == purge else "auth",
            kind=f"tradeloom.{'users.v1.UserPurged' if number + 1 == purge else 'auth.v1.SessionOpened'}",
            detail=f'{{"address":"198.51.100.{number}"}}',
            salt=bytes([number] * 16),
        )
        events.append(event)
    emptied_events = [
        Event(**{**fields(event), "detail": "", "salt": b""}) if event.sequence in emptied else event
        for event in events
    ]
    return emptied_events, end


def fields(event: Event) -> dict[str, Any]:
    return {name: getattr(event, name) for name in event.__slots__}


def lines_of(events: list[Event], end: Checkpoint, key: Ed25519PrivateKey) -> list[str]:
    return [audit.head_line(USER, [jwk(key)]), *map(audit.record_line, events), audit.end_line(end)]


def export(count: int = 5, **given_: Any) -> list[str]:
    events, end = chain(count, **given_)
    signed = Checkpoint(user_id=USER, sequence=end.sequence, hash=end.hash, signature=audit.signed(end, KEY, "k"))
    return lines_of(events, signed, KEY)


def test_an_untouched_export_is_proved_with_and_without_trusted_keys() -> None:
    for keys in (None, [jwk(KEY)]):
        proved = audit.verify_export(export(), keys)
        assert (proved.user_id, proved.record_count, proved.emptied_count, proved.key_id) == (USER, 5, 0, "k")
    assert audit.verify_export(export(0)).record_count == 0


@pytest.mark.parametrize("purge", [1, 4, 5])
def test_what_a_purge_emptied_is_counted_and_leaves_the_chain_provable(purge: int) -> None:
    """What came after it is emptied as well."""
    assert audit.verify_export(export(emptied=range(1, 6), purge=purge), [jwk(KEY)]).emptied_count == 5


@pytest.mark.parametrize(
    ("emptied", "purge"),
    [
        *(((number,), 0) for number in range(1, 6)),
        ((2, 5), 0),
        (range(1, 6), 0),
        # Whoever was not purged cannot be made to look so by what is left of the records.
        ((2,), 4),
        ((1, 2, 3), 4),
        ((4, 5), 4),
        ((2, 3, 4), 4),
    ],
    ids=str,
)
def test_records_that_no_purge_has_emptied_are_noticed(emptied: Sequence[int], purge: int) -> None:
    """Whoever holds an export blanks the one order or login that they dislike; no hash tells."""
    with pytest.raises(Tampered, match="emptied"):
        audit.verify_export(export(emptied=emptied, purge=purge), [jwk(KEY)])


@pytest.mark.parametrize("name", ["time", "source", "kind", "detail", "salt", "digest", "hash", "sequence"])
@pytest.mark.parametrize("number", [1, 3, 5])
def test_each_changed_field_of_each_record_is_noticed(name: str, number: int) -> None:
    lines = export()
    record = json.loads(lines[number])
    other = json.loads(export(7)[7])
    record[name] = {"source": "orders", "kind": "another", "sequence": number + 1}.get(name, other[name])
    lines[number] = json.dumps(record)
    with pytest.raises(Tampered):
        audit.verify_export(lines, [jwk(KEY)])


@pytest.mark.parametrize("number", [1, 3, 5])
def test_a_record_that_is_left_out_or_moved_is_noticed(number: int) -> None:
    lines = export()
    with pytest.raises(Tampered):
        audit.verify_export(lines[:number] + lines[number + 1 :], [jwk(KEY)])
    moved = lines[:1] + [lines[number]] + [line for at, line in enumerate(lines[1:], 1) if at != number]
    if number != 1:
        with pytest.raises(Tampered):
            audit.verify_export(moved, [jwk(KEY)])


def test_a_chain_that_is_cut_short_or_goes_on_is_noticed() -> None:
    lines = export()
    for changed in (lines[:-1], lines[:-2] + lines[-1:], [*lines, lines[-2]], [*lines, lines[-1]], [], lines[:1]):
        with pytest.raises(Tampered):
            audit.verify_export(changed, [jwk(KEY)])


def test_a_chain_made_anew_from_forged_records_is_noticed_by_who_knows_the_key() -> None:
    """Whoever forges can compute every hash, and sign with a key of their own, and put that into the head."""
    forger = Ed25519PrivateKey.generate()
    events, end = chain(3)
    forged = Checkpoint(user_id=USER, sequence=3, hash=end.hash, signature=audit.signed(end, forger, "k"))
    lines = lines_of(events, forged, forger)
    assert audit.verify_export(lines).record_count == 3, "without trusted keys only the head's are known"
    for trusted in ([jwk(KEY)], []):
        with pytest.raises(Tampered):
            audit.verify_export(lines, trusted)


def test_the_signature_of_another_persons_or_an_earlier_end_is_noticed() -> None:
    lines = export()
    for user_id, sequence in ((uuid7(), 5), (USER, 4)):
        end = json.loads(lines[-1])
        other = Checkpoint(user_id=user_id, sequence=sequence, hash=chain(sequence)[1].hash)
        end["signature"] = audit.signed(other, KEY, "k")
        with pytest.raises(Tampered):
            audit.verify_export([*lines[:-1], json.dumps(end)], [jwk(KEY)])


@given(
    st.lists(
        st.one_of(
            st.text(),
            st.builds(
                json.dumps,
                st.recursive(
                    st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
                    lambda inner: st.one_of(
                        st.lists(inner),
                        st.dictionaries(
                            st.sampled_from(
                                [
                                    "format",
                                    "user_id",
                                    "keys",
                                    "sequence",
                                    "time",
                                    "detail",
                                    "salt",
                                    "hash",
                                    "signature",
                                    "x",
                                    "kid",
                                ]
                            ),
                            inner,
                        ),
                    ),
                ),
            ),
        ),
        max_size=4,
    )
)
def test_anything_else_is_refused_and_never_an_error(lines: list[str]) -> None:
    with pytest.raises(Tampered):
        audit.verify_export(lines)
