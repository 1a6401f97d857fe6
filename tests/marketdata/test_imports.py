"""Importing files of bars: exact counts, every wrong line by number, all or nothing, once per request_id."""

import time
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.bar_sizes import BAR_SIZES
from libs.errors import Invalid
from services.marketdata.domain import ImportLinesInvalid, ImportMalformed
from services.marketdata.imports import Rules, check, slices
from tests.marketdata.stand import BTC, START, Feeder, announce, desk_of, served, stored_bars, stored_through, tick_at
from tests.marketdata.test_instruments import reason_of, refused

HAND = "HAND:BTCPERP"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
RULES = Rules(BAR_SIZES["1m"], NOW)
MINUTE = timedelta(minutes=1)
HEADER = "timestamp,open,high,low,close,volume\n"


def file_of(*lines: str) -> bytes:
    return (HEADER + "\n".join(lines) + "\n").encode()


def bar(minute: int, close: float = 11.0) -> str:
    return f"2026-03-02 10:{minute:02}:00,10,12,9,{close},5"


def counts(done) -> tuple[int, int, int, int]:
    return done.read_count, done.inserted_count, done.changed_count, done.unchanged_count


async def test_a_month_of_recorded_bars_is_imported_once(installation, caller, recorded_bars):
    await caller.put(HAND)
    started = time.monotonic()
    done = await caller.load(HAND, recorded_bars)
    print(f"imported in {time.monotonic() - started:.2f} s")
    assert counts(done) == (45_031, 45_031, 0, 0)
    assert done.start_time.ToDatetime(UTC) == datetime(2021, 12, 31, 23, 1, tzinfo=UTC)
    assert done.end_time.ToDatetime(UTC) == datetime(2022, 2, 1, 5, 31, tzinfo=UTC)
    assert counts(await caller.load(HAND, recorded_bars)) == (45_031, 0, 0, 45_031)
    found = await stored_bars(installation, HAND)
    assert len(found) == 45_031
    first = found[0]
    _, opened, _, _, _, volume = recorded_bars.decode().splitlines()[1].split(",")
    assert (first["open_time"], first["open"], first["volume"], first["revision"]) == (
        datetime(2021, 12, 31, 23, 1, tzinfo=UTC),
        float(opened),
        float(volume),
        1,
    )


async def test_changed_bars_take_the_place_of_what_was_there(installation, caller):
    await caller.put(HAND)
    assert counts(await caller.load(HAND, file_of(bar(0), bar(1), bar(2)))) == (3, 3, 0, 0)
    assert counts(await caller.load(HAND, file_of(bar(3), bar(1, close=12), bar(2)))) == (3, 1, 1, 1)
    found = [(row["close"], row["revision"]) for row in await stored_bars(installation, HAND)]
    assert found == [(11, 1), (12, 2), (11, 1), (11, 1)]


async def test_one_wrong_line_leaves_nothing_and_is_named_by_its_number(installation, caller, recorded_bars):
    await caller.put(HAND)
    lines = recorded_bars.decode().split("\n")
    lines[30_000] = lines[30_000].replace(",", ",x", 1)
    lines[44_000] = "2022-01-01 00:00"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await caller.load(HAND, "\n".join(lines).encode())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(caught.value) == "IMPORT_LINES_INVALID"
    error: Any = caught.value
    status = rpc_status.from_call(error)
    assert status
    bad = error_details_pb2.BadRequest()
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        detail.Unpack(bad)
        detail.Unpack(info)
    named = {violation.field: violation.description for violation in bad.field_violations}
    assert named == {"line 30001": "open is not a number", "line 44001": "has 1 fields, the header 6"}
    assert dict(info.metadata) == {"line": "30001", "wrong_lines": "2"}
    assert await stored_bars(installation, HAND) == []


async def test_a_request_id_imports_once_and_is_refused_for_another_file(installation, caller):
    await caller.put(HAND)
    first = await caller.load(HAND, file_of(bar(0)), "one")
    assert await caller.load(HAND, file_of(bar(0)), "one") == first
    assert await refused(caller.load(HAND, file_of(bar(0), bar(1)), "one")) == "REQUEST_ID_REUSED"
    assert await refused(caller.load(HAND, b"nonsense", "two")) == "IMPORT_MALFORMED"
    assert counts(await caller.load(HAND, file_of(bar(1)), "two")) == (1, 1, 0, 0)
    assert len(await stored_bars(installation, HAND)) == 2


async def test_only_instruments_that_exist_can_be_imported_into(caller):
    assert await refused(caller.load(HAND, file_of(bar(0)))) == "INSTRUMENT_NOT_FOUND"


async def test_imported_bars_stand_against_late_ticks(installation, caller, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    await feeder.append([tick_at(datetime(2026, 3, 2, 10, 0, 1, tzinfo=UTC), 50.0)])
    await feeder.append([tick_at(datetime(2026, 3, 2, 10, 5, tzinfo=UTC), 51.0)])
    await stored_through(installation, feeder)
    await caller.load(BTC, file_of(bar(0), bar(1)))
    await feeder.append([tick_at(datetime(2026, 3, 2, 10, 0, 2, tzinfo=UTC), 99.0)])
    await stored_through(installation, feeder)
    assert [(row["high"], row["imported"]) for row in await stored_bars(installation, BTC)] == [
        (12, True),
        (12, True),
        (51, False),
    ]


SIZES_OF_15M = ("15m", "1h", "4h", "1d", "1w")


async def test_bars_flow_up_from_the_size_they_are_imported_at_and_stand_against_all_below(installation, caller, redis):
    await announce(installation, BTC)
    lines = [f"2026-03-02 {9 + number // 4:02}:{number % 4 * 15:02}:00,10,{20 + number},9,11,5" for number in range(8)]
    done = await caller.load(BTC, file_of(*lines), bar_size="15m")
    assert counts(done) == (8, 8, 0, 0)

    async def highs(bar_size: str):
        return [(row["high"], row["volume"], row["imported"]) for row in await stored_bars(installation, BTC, bar_size)]

    assert await highs("15m") == [(20 + number, 5, True) for number in range(8)]
    assert await highs("1h") == [(23, 20, False), (27, 20, False)]
    assert await highs("4h") == [(27, 40, False)]
    assert await highs("1d") == await highs("1w") == [(27, 40, False)]
    assert [await highs(bar_size) for bar_size in ("1s", "1m", "5m")] == [[], [], []]
    before = {bar_size: await stored_bars(installation, BTC, bar_size) for bar_size in SIZES_OF_15M}
    # Ticks and shorter bars of the same time make their own sizes, and change none of these.
    async with desk_of(installation, redis) as desk:
        await desk.store(Feeder(redis).batch([tick_at(START, 900.0)]))
    minute = file_of("2026-03-02 09:01:00,10,800,9,11,5")
    assert counts(await caller.load(BTC, minute, bar_size="1m")) == (1, 1, 0, 0)
    assert await highs("1m") == [(800, 5, True), (900, 1, False)]
    assert await highs("5m") == [(800, 5, False), (900, 1, False)]
    for bar_size in SIZES_OF_15M:
        assert await stored_bars(installation, BTC, bar_size) == before[bar_size], bar_size
    # What is imported beside them flows up as well; what is imported again takes their place, once more told.
    await caller.load(BTC, file_of("2026-03-02 10:00:00,10,50,9,11,5"), bar_size="15m")
    assert [row["revision"] for row in await stored_bars(installation, BTC, "15m")] == [1, 1, 1, 1, 2, 1, 1, 1]
    assert [(row["high"], row["revision"]) for row in await stored_bars(installation, BTC, "1h")] == [(23, 1), (50, 2)]
    assert [(row["high"], row["revision"]) for row in await stored_bars(installation, BTC, "1w")] == [(50, 1)]


async def test_a_bar_that_is_imported_as_it_stood_is_imported_and_not_changed(installation, caller, redis):
    await announce(installation, BTC)
    feeder = Feeder(redis)
    async with desk_of(installation, redis) as desk:
        await desk.store(feeder.batch([tick_at(START, 10.0, 5.0), tick_at(START + MINUTE, 11.0)]))
        assert counts(await caller.load(BTC, file_of("2026-03-02 10:00:00,10,10,10,10,5"))) == (1, 0, 0, 1)
        await desk.store(feeder.batch([tick_at(START, 99.0)]))
    first, second = await stored_bars(installation, BTC)
    assert (first["high"], first["revision"], first["trade_count"], first["imported"]) == (10, 1, 1, True)
    assert (second["high"], second["imported"]) == (11, False)


async def test_bars_must_open_where_bars_of_their_size_do(installation):
    async with served(installation, second_kept_days="0") as caller:
        await caller.put(HAND)
        for bar_size, wrong, right in (
            ("1s", "2026-03-02 10:00:00.5", "2026-03-02 10:00:01"),
            ("4h", "2026-03-10 10:00:00", "2026-03-10 12:00:00"),
            ("1w", "2026-03-24 00:00:00", "2026-03-23 00:00:00"),
        ):
            refusal = await refused(caller.load(HAND, file_of(f"{wrong},1,1,1,1,1"), bar_size=bar_size))
            assert refusal == "IMPORT_LINES_INVALID"
            assert counts(await caller.load(HAND, file_of(f"{right},1,1,1,1,1"), bar_size=bar_size)) == (1, 1, 0, 0)


async def test_only_what_is_settled_later_may_fall_below_zero_and_the_largest_values_have_a_sum(installation, caller):
    below = file_of("2026-03-02 10:00:00,-10,12,-39,-37,5")
    for asset_class in (
        marketdata_pb2.ASSET_CLASS_CRYPTO,
        marketdata_pb2.ASSET_CLASS_EQUITY,
        marketdata_pb2.ASSET_CLASS_FOREX,
    ):
        await caller.put(HAND, asset_class=asset_class)
        assert await refused(caller.load(HAND, below)) == "IMPORT_LINES_INVALID"
    await caller.put(HAND, asset_class=marketdata_pb2.ASSET_CLASS_PERPETUAL)
    assert counts(await caller.load(HAND, below)) == (1, 1, 0, 0)
    largest = [f"2026-03-03 10:{minute:02}:00,1e15,1e15,1e15,1e15,1e15,{10**12}" for minute in range(60)]
    await caller.load(HAND, file_of(*largest).replace(b"volume", b"volume,trades"))
    *_, week = await stored_bars(installation, HAND, "1w")
    assert (week["volume"], week["trade_count"]) == (6e16 + 5, 60 * 10**12)


async def test_bars_that_are_older_than_their_size_is_kept_are_refused(caller):
    await caller.put(HAND)
    line = file_of("2026-03-02 10:00:00,1,1,1,1,1")
    with pytest.raises(grpc.aio.AioRpcError, match="the bar is older than bars of 1s are kept"):
        await caller.load(HAND, line, bar_size="1s")
    assert counts(await caller.load(HAND, line, bar_size="1m")) == (1, 1, 0, 0)


def bars_of(content: bytes, rules: Rules = RULES) -> list[tuple[Any, ...]]:
    """All rows of a file in which nothing is wrong."""
    check(BytesIO(content), rules)
    return [row for bars in slices(BytesIO(content), rules) for row in bars.rows()]


def wrong_lines(content: bytes) -> dict[str, str]:
    with pytest.raises(ImportLinesInvalid) as caught:
        check(BytesIO(content), RULES)
    return dict(caught.value.violations)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("2026-03-02 10:00:00,ten,12,9,11,5", "open is not a number"),
        ("2026-03-02 10:00:00,,12,9,11,5", "open is not a number"),
        ("2026-03-02 10:00:00,10,12,9,11,nan", "volume is not finite"),
        ("2026-03-02 10:00:00,10,inf,9,11,5", "high is not finite"),
        ("2026-03-02 10:00:00,10,9,12,11,5", "high is below low"),
        ("2026-03-02 10:00:00,10,12,9,13,5", "high is below open or close"),
        ("2026-03-02 10:00:00,8,12,9,11,5", "low is above open or close"),
        ("2026-03-02 10:00:00,10,12,9,11,-1", "volume is negative"),
        ("2026-03-02 10:00:00,0,0,0,0,5", "open is not above zero"),
        ("2026-03-02 10:00:00,10,12,-9,11,5", "low is not above zero"),
        ("2026-03-02 10:00:00,10,1e16,9,11,5", "high is larger than any may be, 1e+15"),
        ("2026-03-02 10:00:00,10,12,9,11,1e308", "volume is larger than any may be, 1e+15"),
        ("2026-03-02T10:00:00+14:01,10,12,9,11,5", "timestamp is not a time such as 2021-12-31 23:01:00"),
        ("2026-03-02T10:00:00+99:99,10,12,9,11,5", "timestamp is not a time such as 2021-12-31 23:01:00"),
        ("2026-03-02T10:00:00+24,10,12,9,11,5", "timestamp is not a time such as 2021-12-31 23:01:00"),
        ("2026-03-02T10:00:00-10:60,10,12,9,11,5", "timestamp is not a time such as 2021-12-31 23:01:00"),
        ("2026-03-02 10:00:30,10,12,9,11,5", "timestamp is not where a bar of 1m opens"),
        ("2026-03-02 10:00:00.5,10,12,9,11,5", "timestamp is not where a bar of 1m opens"),
        ("yesterday,10,12,9,11,5", "timestamp is not a time such as 2021-12-31 23:01:00"),
        ("2026-13-02 10:00:00,10,12,9,11,5", "timestamp is not a time such as 2021-12-31 23:01:00"),
        ("2026-06-01 00:00:00,10,12,9,11,5", "the bar has not ended yet"),
        ("1969-12-31 23:59:00,10,12,9,11,5", "timestamp is before 1970"),
        ("2026-03-02 10:00:00,10,12,9,11", "has 5 fields, the header 6"),
        ("2026-03-02 10:00:00,10,12,9,11,5,6", "has 7 fields, the header 6"),
        ("2026-03-02 09:58:00,10,12,9,11,5", "repeats the timestamp of line 2"),
        ('"2026-03-02 10:00:00,10,12,9,11,5', "has 1 fields, the header 6"),
        ("20260302,10,12,9,11,5", "timestamp is not a time such as 2021-12-31 23:01:00"),
        ("2026-03-02 10:00:00+01:00:00,10,12,9,11,5", "timestamp is not a time such as 2021-12-31 23:01:00"),
        ("\xff,10,12,9,11,5", "timestamp is not a time such as 2021-12-31 23:01:00"),
    ],
)
def test_each_kind_of_wrong_line_is_named(line, why):
    content = b"%s2026-03-02 09:58:00,10,12,9,11,5\n\n%s\n2026-03-02 09:59:00,10,12,9,11,5" % (
        HEADER.encode(),
        line.encode("latin-1"),
    )
    assert wrong_lines(content) == {"line 4": why}


def test_all_wrong_lines_are_counted_and_the_first_forty_named():
    with pytest.raises(ImportLinesInvalid) as caught:
        check(BytesIO(file_of(bar(0), *(["x"] * 250), bar(1))), RULES)
    assert len(caught.value.violations) == 40
    assert next(iter(caught.value.violations)) == "line 3"
    assert caught.value.metadata == {"line": "3", "wrong_lines": "250"}


@pytest.mark.parametrize(
    "content",
    [b"", b"\n\n", HEADER.encode(), b"timestamp,open,high,low,close\n", b"a,b\n1,2\n", b"\x00\x01\x02"],
)
def test_a_file_of_another_form_is_malformed(content):
    with pytest.raises(ImportMalformed):
        check(BytesIO(content), RULES)


def test_columns_in_any_order_times_in_several_spellings_and_windows_lines_are_read():
    content = (
        b"\xef\xbb\xbfVolume, Close ,low,high,open,timestamp,trades\r\n"
        b"5,11,9,12,10,2026-03-02T10:02:00Z,7\r\n"
        b"5,11,9,12,10,2026-03-02 10:00:00.000000,7\r\n"
        b"1e1, 11 ,9,12,10,2026-03-02 10:01:00+00:00,7\r\n"
    )
    assert [(row[0].minute, *row[1:]) for row in bars_of(content)] == [
        (2, 10, 12, 9, 11, 5, 7),
        (0, 10, 12, 9, 11, 5, 7),
        (1, 10, 12, 9, 11, 10, 7),
    ]


def test_a_refusal_says_in_one_line_what_is_wrong():
    with pytest.raises(Invalid) as caught:
        check(BytesIO(file_of(bar(0), "x")), RULES)
    assert str(caught.value) == "1 line is wrong, the first is line 3: has 1 fields, the header 6"
