"""Every layout and container of a file of bars: recognised by what is in it, read in blocks, and wrong rows named exactly."""

import asyncio
import gzip
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from io import BytesIO
from typing import Any

import polars as pl
import pytest

from libs.bar_sizes import BAR_SIZES, EPOCH
from libs.errors import Invalid
from services.marketdata import arrow, imports, layouts, parquet, sessions, unpacking
from services.marketdata.domain import ImportLinesInvalid, ImportMalformed
from services.marketdata.imports import Rules, check, slices

NOW = datetime(2026, 6, 1, tzinfo=UTC)
RULES = Rules(BAR_SIZES["1m"], NOW)
START = datetime(2025, 3, 2, 10, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
HEADER = "timestamp,open,high,low,close,volume"


def seconds(minute: int) -> int:
    return int((START + minute * MINUTE).timestamp())


def read(content: bytes, rules: Rules = RULES) -> tuple[str, list[tuple[Any, ...]]]:
    """The layout of a file in which nothing is wrong, and its bars."""
    checked = check(BytesIO(content), rules)
    bars = [row for some in slices(BytesIO(content), rules) for row in some.rows()]
    assert checked.row_count == len(bars)
    assert (checked.first, checked.last) == (min(bars)[0], max(bars)[0])
    return checked.layout, bars


def wrong(content: bytes, rules: Rules = RULES) -> dict[str, str]:
    with pytest.raises(ImportLinesInvalid) as caught:
        check(BytesIO(content), rules)
    return dict(caught.value.violations)


def malformed(content: bytes, rules: Rules = RULES) -> dict[str, str]:
    with pytest.raises(ImportMalformed) as caught:
        check(BytesIO(content), rules)
    return dict(caught.value.violations)


def table(count: int = 3) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "time": [START + minute * MINUTE for minute in range(count)],
            "open": [10.0] * count,
            "high": [12.0] * count,
            "low": [9.0] * count,
            "close": [11.0] * count,
            "volume": [5.5] * count,
        },
        schema_overrides={"time": pl.Datetime("us", "UTC")},
    )


def three(*more: int) -> list[tuple[Any, ...]]:
    return [(START + minute * MINUTE, 10, 12, 9, 11, 5.5, *more) for minute in range(3)]


def binance(minute: int, unit: int) -> str:
    return f"{seconds(minute) * unit},10,12,9,11,5.5,{(seconds(minute) + 60) * unit - 1},60.5,7,2.5,27.5,0"


BINANCE_HEADER = (
    "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_buy_quote_volume,ignore"
)


@pytest.mark.parametrize("unit", [1_000, 1_000_000])
@pytest.mark.parametrize("header", [[], [BINANCE_HEADER]])
def test_binances_klines_are_read_with_and_without_names_in_milliseconds_and_microseconds(unit, header):
    content = "\n".join([*header, *(binance(minute, unit) for minute in range(3))]).encode()
    assert read(content) == ("CSV of Binance", three(7))


def test_krakens_columns_are_known_by_their_number():
    content = "".join(f"{seconds(minute)},10,12,9,11,5.5,7\n" for minute in range(3)).encode()
    assert read(content) == ("CSV of Kraken", three(7))


@pytest.mark.parametrize("spelling", ["epoch", "offset"])
def test_tradingviews_export_is_read_and_its_indicators_are_passed_over(spelling):
    def time(minute: int) -> str:
        new_york = START - timedelta(hours=5) + minute * MINUTE
        return str(seconds(minute)) if spelling == "epoch" else f"{new_york:%Y-%m-%dT%H:%M:%S}-05:00"

    lines = [f"{time(minute)},10,12,9,11,5.5,NaN,-3" for minute in range(3)]
    content = "\n".join(["time,open,high,low,close,Volume,MA,MA", *lines]).encode()
    assert read(content) == ("CSV of TradingView", three())


@pytest.mark.parametrize("time", ["timestamp", "Time", "date", "DateTime", "open_time", "Open time"])
@pytest.mark.parametrize(("volume", "count"), [("volume", ""), ("Vol", "trades"), ("Volume", "trade_count")])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_usual_names_are_known_in_any_order_and_with_any_separator(time, volume, count, separator):
    names = [count or "other", "close", "low", time, "high", volume, "open"]
    lines = [["7", "11", "9", f"{START + minute * MINUTE:%Y-%m-%d %H:%M}", "12", "5.5", "10"] for minute in range(3)]
    content = "\n".join(separator.join(line) for line in [names, *lines]).encode()
    assert read(content) == ("CSV", three(*([7] if count else [])))


@pytest.mark.parametrize(
    "text",
    [
        "2025-03-02 10:00:00",
        "2025-03-02T10:00:00Z",
        "2025-03-02T10:00Z",
        "2025-03-02T10:00:00.000000000Z",
        "2025-03-02 10:00:00 UTC",
        "2025-03-02 10:00:00+00:00",
        "2025-03-02T11:30:00+01:30",
        "2025-03-02T05:00:00.0-0500",
        "2025-03-01T23:00-11",
        "1740909600",
        "1740909600.0",
        "1740909600000",
        "1740909600000000",
        "1740909600000000000",
    ],
)
def test_a_time_is_read_in_each_spelling_alone_and_beside_another(text):
    for beside in ("2025-03-02 10:01:00", "1740909660", "2025-03-02T10:01:00+00:00"):
        content = f"{HEADER}\n{text},10,12,9,11,5.5\n{beside},10,12,9,11,5.5\n".encode()
        assert [bar[0] for bar in read(content)[1]] == [START, START + MINUTE]


def test_a_date_alone_is_its_midnight():
    content = f"{HEADER}\n2025-03-03,10,12,9,11,5.5\n".encode()
    assert read(content, Rules(BAR_SIZES["1d"], NOW))[1][0][0] == datetime(2025, 3, 3, tzinfo=UTC)


def test_marks_of_windows_quotes_and_blank_lines_change_nothing():
    lines = [f'"{START + minute * MINUTE:%Y-%m-%d %H:%M:%S}","10","12",9,11,"5.5","a, b ""c"""' for minute in range(3)]
    content = "\r\n".join(
        ["", f'"{HEADER.replace(",", chr(34) + "," + chr(34))}","note"', "", lines[0], "  ", *lines[1:], ""]
    )
    assert read(b"\xef\xbb\xbf" + content.encode()) == ("CSV", three())


def packed_tables() -> Iterator[tuple[str, bytes]]:
    for kind, name in (("write_parquet", "Parquet"), ("write_ipc", "Arrow file"), ("write_ipc_stream", "Arrow stream")):
        content = BytesIO()
        getattr(table(), kind)(content)
        yield name, content.getvalue()


def test_tables_are_read_by_the_same_names():
    for name, content in packed_tables():
        assert read(content) == (name, three())


UNIX = pl.col("time").dt.epoch("us")


@pytest.mark.parametrize(
    "column",
    [
        pl.col("time").cast(pl.Datetime("ms", "UTC")),
        pl.col("time").cast(pl.Datetime("ns", "UTC")),
        pl.col("time").dt.replace_time_zone(None),
        pl.col("time").dt.convert_time_zone("Asia/Tokyo"),
        pl.col("time").dt.to_string("%Y-%m-%dT%H:%M:%SZ"),
        UNIX,
        UNIX * 1_000,
        UNIX // 1_000,
        UNIX // 1_000_000,
        (UNIX / 1_000_000).cast(pl.Float64),
    ],
    ids=str,
)
def test_a_tables_time_may_be_of_any_type_that_says_one(column):
    for kind in ("write_parquet", "write_ipc", "write_ipc_stream"):
        content = BytesIO()
        more = [pl.col("volume").cast(pl.Decimal(10, 2)), pl.lit("x").cast(pl.Categorical).alias("note")]
        getattr(table().with_columns(column.alias("time"), *more, trades=pl.lit(7)), kind)(content)
        assert read(content.getvalue())[1] == three(7)


def test_a_tables_dates_open_days():
    content = BytesIO()
    table(1).with_columns(time=pl.lit(date(2025, 3, 3))).write_parquet(content)
    assert read(content.getvalue(), Rules(BAR_SIZES["1d"], NOW))[1][0][0] == datetime(2025, 3, 3, tzinfo=UTC)


@pytest.mark.parametrize("kind", ["write_parquet", "write_ipc", "write_ipc_stream"])
def test_a_wrong_row_of_a_table_is_named_by_its_number_in_whichever_batch_it_is(kind):
    count = layouts.BLOCK_ROWS * 2 + 5
    bars = table(count).with_columns(
        high=pl.when(pl.int_range(count) == count - 2).then(1.0).otherwise("high"),
        open=pl.when(pl.int_range(count) == 7).then(None).otherwise("open"),
    )
    more = {"write_parquet": {"row_group_size": 1_000}, "write_ipc": {"record_batch_size": 900}}.get(kind, {})
    content = BytesIO()
    getattr(bars, kind)(content, **more)
    assert wrong(content.getvalue()) == {"row 8": "open is not a number", f"row {count - 1}": "high is below low"}


def csv_of(minutes: Sequence[int], *, header: bool = True) -> bytes:
    lines = [f"{START + minute * MINUTE:%Y-%m-%d %H:%M:%S},10,12,9,11,5.5" for minute in minutes]
    return "\n".join([*([HEADER] if header else []), *lines, ""]).encode()


def zip_of(**members: bytes) -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("folder/", b"")
        archive.writestr("__MACOSX/._x", b"\0")
        for name, member in members.items():
            archive.writestr(f"{name}.csv", member)
    return content.getvalue()


def test_gzip_and_zip_are_unpacked_and_a_zips_members_read_in_the_order_of_their_names():
    assert read(gzip.compress(csv_of(range(3)))) == ("CSV, gzip", three())
    # gzip files that stand one after the other are one.
    assert read(gzip.compress(csv_of(range(2))) + gzip.compress(csv_of([2], header=False)))[1] == three()
    assert read(zip_of(x=csv_of(range(3)))) == ("CSV, zip", three())
    assert read(zip_of(b=csv_of([2]), a=csv_of([0, 1]))) == ("CSV, zip", three())
    content = BytesIO()
    table().write_ipc_stream(content)
    assert read(gzip.compress(content.getvalue())) == ("Arrow stream, gzip", three())


def test_wrong_lines_are_exact_in_whatever_they_are_packed():
    content = csv_of(range(30_000)).decode().split("\n")
    content[20_000], content[29_000] = "x", content[2]
    told = {"line 20001": "has 1 fields, the header 6", "line 29001": "repeats the timestamp of line 3"}
    packed = "\n".join(content).encode()
    assert wrong(packed) == wrong(gzip.compress(packed)) == wrong(zip_of(x=packed)) == told
    assert wrong(zip_of(a=csv_of([50_000]), b=packed)) == {
        "b.csv line 20001": "has 1 fields, the header 6",
        "b.csv line 29001": "repeats the timestamp of b.csv line 3",
    }
    assert wrong(zip_of(a=csv_of([0, 1]), b=csv_of([1, 2]))) == {
        "b.csv line 2": "repeats the timestamp of a.csv line 3"
    }


def test_a_time_that_comes_often_is_wrong_each_time_but_the_first_across_blocks():
    count = layouts.BLOCK_BYTES // 20
    content = csv_of([*range(count), 5, 5, count - 1])
    assert wrong(content) == {
        f"line {count + 2}": "repeats the timestamp of line 7",
        f"line {count + 3}": "repeats the timestamp of line 7",
        f"line {count + 4}": f"repeats the timestamp of line {count + 1}",
    }


def test_members_of_several_layouts_are_refused():
    kraken = f"{seconds(5)},10,12,9,11,5.5,7\n".encode()
    assert malformed(zip_of(a=csv_of([0]), b=kraken)) == {"b.csv": "is CSV of Kraken, and the members before it CSV"}


@pytest.mark.parametrize("content", [b"a,b,c\n1,2,3\n", b"1,2,3,4,5,6\n", csv_of([0]).replace(b"low", b"open")])
def test_an_unknown_header_is_told_which_layouts_there_are(content):
    assert malformed(content) == {"line 1": f"must {layouts.KNOWN}"}
    assert malformed(zip_of(a=csv_of([0]), b=content)) == {"b.csv line 1": f"must {layouts.KNOWN}"}
    packed = BytesIO()
    table().drop("volume").write_parquet(packed)
    assert malformed(packed.getvalue()) == {"columns": f"must {layouts.KNOWN}"}


def test_a_line_without_an_end_is_refused_before_it_fills_the_memory():
    content = csv_of([0]) + b"x" * (layouts.BLOCK_BYTES + layouts.LINE_BYTES_MAX + 1)
    assert malformed(content) == {"line 3": "is longer than 64 KiB"}


def test_a_number_of_trades_is_whole():
    header = f"{HEADER},trades"
    values = ("7", "7.0", "7.5", "-1", "", "nan", "1e300")
    lines = [f"{seconds(minute)},10,12,9,11,5.5,{value}" for minute, value in enumerate(values)]
    told = "the number of trades is not a whole number"
    assert wrong("\n".join([header, *lines]).encode()) == dict.fromkeys([f"line {line}" for line in range(4, 9)], told)


@pytest.mark.parametrize("kind", ["write_csv", "write_parquet", "write_ipc", "write_ipc_stream"])
def test_bars_that_were_forming_when_they_were_written_are_wrong(kind):
    content = BytesIO()
    getattr(table().with_columns(closed=pl.Series([True, True, False])), kind)(content)
    place = "line 4" if kind == "write_csv" else "row 3"
    assert wrong(content.getvalue()) == {place: "the bar was still forming when the file was written: leave it out"}
    content = BytesIO()
    getattr(table().with_columns(closed=True), kind)(content)
    assert read(content.getvalue())[1] == three()


def test_what_tells_neither_closed_nor_forming_is_wrong():
    lines = [
        f"{seconds(minute)},10,12,9,11,5.5,{closed}" for minute, closed in enumerate(("True", "1", "yes", "", "FALSE"))
    ]
    assert wrong("\n".join([f"{HEADER},closed", *lines]).encode()) == {
        "line 4": "closed is neither true nor false",
        "line 5": "closed is neither true nor false",
        "line 6": "the bar was still forming when the file was written: leave it out",
    }


def klines(unit: timedelta, count: int = 3, *, gap: timedelta | None = None) -> bytes:
    """Of Binance, each so long, and one after the other unless a gap is told."""
    opens = [START + number * (gap or unit) for number in range(count)]
    ends = [opened + unit - timedelta(milliseconds=1) for opened in opens]
    return "".join(
        f"{opened.timestamp() * 1_000:.0f},10,12,9,11,5.5,{end.timestamp() * 1_000:.0f},60.5,7,2.5,27.5,0\n"
        for opened, end in zip(opens, ends, strict=True)
    ).encode()


def test_bars_that_close_later_than_those_of_the_size_are_refused():
    hour = timedelta(hours=1)
    told = {"header.bar_size": "is 1m, and by their close times the bars are 1h long"}
    for content in (klines(hour, 1), klines(hour), f"{BINANCE_HEADER}\n".encode() + klines(hour)):
        assert malformed(content) == told
        assert malformed(content, Rules(BAR_SIZES["1m"], NOW, is_sparse=True)) == told
        assert read(content, Rules(BAR_SIZES["1h"], NOW))[1]
    # Minutes that are an hour apart have told how long they are.
    assert len(read(klines(MINUTE, 8, gap=hour))[1]) == 8
    mixed = klines(MINUTE, 2) + klines(hour, 4)[len(klines(hour, 2)) :]
    assert wrong(mixed) == dict.fromkeys(("line 3", "line 4"), "close_time is after the end of a bar of 1m")


@pytest.mark.parametrize(
    ("size", "apart", "least", "called"),
    [
        ("1m", timedelta(hours=1), 3, "1h"),
        ("1m", timedelta(days=1), 3, "1d"),
        ("1m", timedelta(minutes=5), 4, "5m"),
        ("15m", timedelta(minutes=30), 8, "30m"),
        ("1h", timedelta(hours=4), 5, "4h"),
        ("1s", timedelta(minutes=1), 3, "1m"),
        ("1d", timedelta(days=7), 4, "1w"),
    ],
)
def test_bars_that_all_stand_multiples_of_a_longer_time_apart_are_refused(size, apart, least, called):
    first = datetime(2025, 3, 3, tzinfo=UTC)
    rules, sparse = (Rules(BAR_SIZES[size], NOW, is_sparse=is_sparse) for is_sparse in (False, True))

    def content(count: int, *more: datetime) -> bytes:
        # Not each of them is there.
        times = [first + number * apart for number in (*range(count - 1), count + 3)]
        return "\n".join([HEADER, *(f"{time:%Y-%m-%d %H:%M:%S},10,12,9,11,5.5" for time in (*times, *more))]).encode()

    assert malformed(content(least), rules) == {
        "header.bar_size": f"is {size}, and all bars stand {called} or multiples of it apart: "
        "give their true size, or say that the market is sparse"
    }
    assert len(read(content(least), sparse)[1]) == least
    # So few may do so by chance.
    assert len(read(content(least - 1), rules)[1]) == least - 1
    assert len(read(content(least, first + BAR_SIZES[size].length), rules)[1]) == least + 1


def test_weeks_are_not_taken_for_the_days_of_an_exchange():
    calendar = asyncio.run(sessions.known("XNYS", NOW, "calendar"))
    rules = Rules(BAR_SIZES["1d"], NOW, calendar=calendar)
    # Over the change of the clock, on which its days begin an hour earlier.
    tuesdays = [f"{datetime(2025, 2, 25, tzinfo=UTC) + week * timedelta(days=7):%Y-%m-%d}" for week in range(6)]
    content = "\n".join([HEADER, *(f"{day},10,12,9,11,5.5" for day in tuesdays)]).encode()
    assert "all bars stand 1w or multiples of it apart" in malformed(content, rules)["header.bar_size"]
    assert len(read(content + b"\n2025-02-26,10,12,9,11,5.5", rules)[1]) == 7


def test_more_rows_than_may_be_are_refused(monkeypatch):
    monkeypatch.setattr(imports, "ROWS_MAX", 2)
    assert malformed(csv_of(range(3))) == {"file": "has more than 2 rows; split it by time"}


@pytest.mark.parametrize("pack", [gzip.compress, lambda content: zip_of(x=content)], ids=["gzip", "zip"])
def test_what_unpacks_to_far_more_than_it_is_long_is_refused(pack):
    bomb = pack(b"\n" * (unpacking.UNPACKED_BYTES_FREE * 4))
    assert len(bomb) < 1 << 20
    assert "unpacks to more than" in malformed(bomb)["file"]


def test_what_unpacks_to_more_than_any_file_has_is_refused(monkeypatch):
    monkeypatch.setattr(unpacking, "UNPACKED_BYTES_MAX", 1_000)
    assert "unpacks to more than" in malformed(zip_of(a=csv_of(range(15)), b=csv_of(range(15, 30))))["file"]


def test_a_zip_whose_directory_is_larger_than_any_is_refused():
    content = bytearray(zip_of(x=csv_of([0])))
    end = content.rindex(b"PK\x05\x06")
    padded = content[:end] + b"\0" * (unpacking.DIRECTORY_BYTES_MAX + 1) + content[end:]
    place = padded.rindex(b"PK\x05\x06")
    struct.pack_into(
        "<I", padded, place + 12, unpacking.DIRECTORY_BYTES_MAX + 1 + struct.unpack_from("<I", content, end + 12)[0]
    )
    assert malformed(bytes(padded)) == {"file": "the zip's directory is larger than 1 MiB"}


def test_record_batches_that_are_too_large_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.setattr(arrow, "BATCH_ROWS_MAX", 2)
    for kind in ("write_ipc", "write_ipc_stream"):
        content = BytesIO()
        getattr(table(), kind)(content)
        assert "has a record batch above 2 rows" in malformed(content.getvalue())["file"]


NUMERIC = "must be numbers, and is of the type"


@pytest.mark.parametrize("kind", ["write_parquet", "write_ipc", "write_ipc_stream"])
@pytest.mark.parametrize(
    ("column", "told"),
    [
        (pl.lit("10").alias("open"), f"{NUMERIC} String"),
        (pl.lit(b"10").alias("high"), f"{NUMERIC} Binary"),
        (pl.lit(True).alias("low"), f"{NUMERIC} Boolean"),
        (pl.col("time").alias("close"), f"{NUMERIC} Datetime(time_unit='us', time_zone='UTC')"),
        (pl.lit("5").cast(pl.Categorical).alias("volume"), f"{NUMERIC} Categorical"),
        (pl.lit("7").alias("trades"), f"{NUMERIC} String"),
        (pl.lit(timedelta(days=1)).alias("time"), "must be times, and is of the type Duration(time_unit='us')"),
        (pl.lit("2025-03-02").cast(pl.Categorical).alias("time"), "must be times, and is of the type Categorical"),
        (pl.lit("true").alias("closed"), "must be true or false, and is of the type String"),
    ],
    ids=str,
)
def test_a_column_of_another_type_is_refused(kind, column, told):
    content = BytesIO()
    getattr(table().with_columns(column), kind)(content)
    assert malformed(content.getvalue()) == {f"column {column.meta.output_name()}": told}


READ = """
import resource, sys
from datetime import UTC, datetime
from libs.bar_sizes import BAR_SIZES
from libs.errors import Invalid
from services.marketdata import imports
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
with open(sys.argv[1], "rb") as file:
    try:
        imports.check(file, imports.Rules(BAR_SIZES["1m"], datetime.now(UTC)))
    except Invalid as refusal:
        print(refusal)
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""


@pytest.mark.parametrize(
    "kind", ["write_parquet", "write_ipc", pytest.param("write_ipc_stream", marks=pytest.mark.long)]
)
def test_a_table_that_unpacks_to_far_more_than_it_is_long_is_refused_before_it_is_unpacked(tmp_path, kind):
    path = tmp_path / "bomb"
    text = "1" * (100 << 20)
    getattr(table(1).with_columns(time=pl.lit(text)), kind)(path, compression="zstd")
    assert path.stat().st_size < 1 << 20
    done = subprocess.run([sys.executable, "-c", READ, path], check=True, capture_output=True, text=True, timeout=60)
    told, peaks = done.stdout.splitlines()
    assert "unpacks to more than" in told
    before, after = map(int, peaks.split())
    assert after - before < 50


def test_row_groups_that_are_too_large_are_refused(monkeypatch):
    content = BytesIO()
    table(1_000).write_parquet(content)
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES_MAX", 1_000)
    assert "has a row group above" in malformed(content.getvalue())["file"]


def test_what_a_parquet_file_says_of_its_pages_is_read_as_it_was_written():
    for rows in (1, 50_000):
        for compression in ("uncompressed", "zstd", "snappy"):
            bars = table(rows).with_columns(volume=pl.int_range(rows).cast(pl.Float64).sin(), note=pl.lit("x"))
            content = BytesIO()
            bars.write_parquet(content, compression=compression, row_group_size=20_000, data_page_size=10_000)
            chunks = [
                chunk for group in parquet.row_groups(parquet.footer_of(content, content.tell())) for chunk in group
            ]
            assert [chunk.column for chunk in chunks] == bars.columns * len(range(0, rows, 20_000))
            unpacked = sum(sum(parquet.pages(content, chunk)) for chunk in chunks if chunk.column == "volume")
            # A dictionary, or 8 bytes each.
            assert rows * 8 <= unpacked < rows * 8 + 4_096 + rows


def broken() -> Iterator[bytes]:
    for name, content in packed_tables():
        yield content[: len(content) // 2]
        yield content[:9]
        # What describes it stands at the end of a file, and at the beginning of a stream.
        place = 16 if name == "Arrow stream" else len(content) - 80
        yield content[:place] + b"\xff" * 64 + content[place + 64 :]
    yield gzip.compress(csv_of([0]))[:-20]
    yield gzip.compress(csv_of([0]))[:4] + b"\0" * 40
    yield zip_of(x=csv_of([0]))[:-30]
    yield zip_of()
    yield zip_of(x=gzip.compress(csv_of([0])))
    content = BytesIO()
    table().write_parquet(content)
    yield zip_of(x=content.getvalue())
    yield gzip.compress(content.getvalue())


@pytest.mark.parametrize("kind", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_corrupt_member_is_named_however_it_was_packed(kind):
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", kind) as archive:
        archive.writestr("a.csv", csv_of(range(100)))
    content = bytearray(packed.getvalue())
    content[50:70] = b"\xff" * 20
    ((place, why),) = malformed(bytes(content)).items()
    assert place == "a.csv"
    assert "cannot be unpacked" in why


def test_what_is_broken_is_refused_and_never_fails():
    for content in broken():
        with pytest.raises(Invalid):
            check(BytesIO(content), RULES)


def test_bars_beyond_a_place_are_the_same_however_the_file_is_cut(monkeypatch):
    monkeypatch.setattr(imports, "SLICE_ROWS", 700)
    monkeypatch.setattr(layouts, "BLOCK_BYTES", 5_000)
    content = zip_of(a=csv_of(range(1_000)), b=csv_of(range(1_000, 2_500)))
    whole = [row for some in slices(BytesIO(content), RULES) for row in some.rows()]
    assert [row[0] for row in whole] == [START + minute * MINUTE for minute in range(2_500)]
    for after in (0, 1, 699, 700, 1_400, 2_499, 2_500):
        parts = list(slices(BytesIO(content), RULES, after))
        assert all(part.height == 700 for part in parts[:-1])
        assert [row for part in parts for row in part.rows()] == whole[after:]


def test_bars_before_1970_are_wrong_in_tables_too():
    content = BytesIO()
    table(1).with_columns(time=pl.lit(EPOCH - MINUTE)).write_parquet(content)
    assert wrong(content.getvalue()) == {"row 1": "timestamp is before 1970"}
