"""Every layout and container of a file of bars: recognised by what is in it, read in blocks, and wrong rows named exactly."""

import asyncio
import bz2
import gzip
import hashlib
import lzma
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
    assert read(zip_of(b=csv_of([2]), a=csv_of([0, 1]))) == ("CSV, zip of 2 files", three())
    content = BytesIO()
    table().write_ipc_stream(content)
    assert read(gzip.compress(content.getvalue())) == ("Arrow stream, gzip", three())


def named_zip(members: dict[str, bytes]) -> bytes:
    content = BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


BESIDE = {
    "README": b"read me",
    "a/ReadMe.txt": b"read me",
    "LICENSE.md": b"do what you like",
    "a/.DS_Store": b"\0",
    "__MACOSX/a/._x.csv": b"\0",
    "x.csv.CHECKSUM": b"of something else",
    "Thumbs.db": b"\xd0\xcf\x11\xe0",
}


def test_what_stands_beside_the_bars_in_a_zip_is_passed_over():
    assert read(named_zip(BESIDE | {"a/x.csv": csv_of(range(3))})) == ("CSV, zip", three())
    wrong_line = csv_of(range(3)).replace(b"10:01:00", b"10:01:30")
    assert wrong(named_zip({"a/x.csv": wrong_line} | BESIDE)) == {"line 3": "timestamp is not where a bar of 1m opens"}
    assert malformed(named_zip(BESIDE)) == {"file": "has no bars: only README and the like are in the zip"}
    assert malformed(named_zip({})) == {"file": "has no bars: the zip is empty"}
    assert "notes.txt line 1" in malformed(named_zip({"x.csv": csv_of([0]), "notes.txt": b"of mine"}))
    # A name that has bars in it is not one of those.
    for name in ("readme.csv", "license_2024.csv", "checksum", "pdf.csv"):
        assert read(named_zip({name: csv_of(range(3))})) == ("CSV, zip", three())


@pytest.mark.parametrize("spelling", ["{}  x.csv\n", "{} *x.csv", "# of today\r\n{}  ./a/x.csv\r\n"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_checksum_in_the_zip_is_held_against_the_member_it_names(spelling, pack):
    bars = pack(csv_of(range(3)))
    right, other = (hashlib.sha256(each).hexdigest() for each in (bars, bars[:-1]))
    for name in ("x.csv.CHECKSUM", "SUMS.sha256"):
        assert read(named_zip({"a/x.csv": bars, name: spelling.format(right).encode()}))[1] == three()
        assert malformed(named_zip({"a/x.csv": bars, name: spelling.format(other).encode()})) == {
            "a/x.csv": "is not what its checksum in the zip is of; fetch the zip again"
        }
        assert read(named_zip({"a/x.csv": bars, name: spelling.format(other).replace("x.", "y.").encode()}))[1]


def test_a_table_in_a_zip_has_its_checksum_too_and_of_two_of_a_name_nothing_is_known():
    content = BytesIO()
    table().write_ipc_stream(content)
    bars = {"x.arrow": content.getvalue() + b"\0" * 100, "x.arrow.sha256": f"{'0' * 64}  x.arrow".encode()}
    assert malformed(named_zip(bars)) == {"x.arrow": "is not what its checksum in the zip is of; fetch the zip again"}
    two = {"a/x.csv": csv_of([0, 1]), "b/x.csv": csv_of([2]), "b/x.csv.CHECKSUM": f"{'0' * 64}  x.csv".encode()}
    assert read(named_zip(two)) == ("CSV, zip of 2 files", three())


def test_a_gzip_in_a_zip_is_unpacked_too_and_its_lines_are_exact():
    packed = gzip.compress(csv_of(range(3)))
    assert read(named_zip({"x.csv.gz": packed})) == ("CSV, gzip in zip", three())
    both = {"b.csv.gz": gzip.compress(csv_of([2])), "a.csv": csv_of([0, 1])}
    assert read(named_zip(both)) == ("CSV, gzip in zip of 2 files", three())
    both["b.csv.gz"] = gzip.compress(csv_of([1]))
    assert wrong(named_zip(both)) == {"b.csv.gz line 2": "repeats the timestamp of a.csv line 3"}
    assert malformed(named_zip({"x.csv.gz": gzip.compress(packed)})) == {"file": "is packed twice; unpack it once"}


def test_a_gzip_in_a_zip_unpacks_to_no_more_than_others(monkeypatch):
    monkeypatch.setattr(unpacking, "UNPACKED_BYTES_FREE", 1 << 16)
    bars = gzip.compress(b"\n" * (1 << 22))
    # A gzip of nothing, ten thousand times over, is unpacked for long although nothing comes of it.
    for bomb in (bars, gzip.compress(b"") * 10_000):
        assert "unpacks to more than" in malformed(named_zip({"x.csv.gz": bomb}))["file"]


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


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"a,b,c\n1,2,3\n", "it names no time, open, high, low, close, volume"),
        (b"1,2,3,4,5,6\n", "it has 6 columns and no names: write them into a line before it"),
        (b"2024.01.02,00:00,1,2,1,2,3\n", "it has 7 columns and no names: write them into a line before it"),
        (csv_of([0]).replace(b"low", b"open"), "it names no low and open more than once"),
        (csv_of([0]).replace(b"volume", b"size"), "it names no volume"),
    ],
)
def test_an_unknown_header_is_told_which_layouts_there_are_and_what_it_lacks(content, why):
    assert malformed(content) == {"line 1": f"must {layouts.KNOWN}; {why}"}
    aside = "if it has no bars, leave it out of the zip"
    assert malformed(zip_of(a=csv_of([0]), b=content)) == {"b.csv line 1": f"must {layouts.KNOWN}; {why}; {aside}"}


def test_a_table_without_a_column_that_must_be_there_is_told_which():
    packed = BytesIO()
    table().drop("volume").write_parquet(packed)
    assert malformed(packed.getvalue()) == {"columns": f"must {layouts.KNOWN}; it names no volume"}


METATRADER = "<DATE>,<TIME>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<TICKVOL>,<VOL>,<SPREAD>"


@pytest.mark.parametrize("separator", [",", "\t"])
def test_metatraders_bars_have_their_day_and_their_clock_in_columns_of_their_own(separator):
    lines = [METATRADER, *(f"2025.03.02,10:{minute:02}:00,10,12,9,11,125,5.5,8" for minute in range(3))]
    content = "\n".join(lines).replace(",", separator)
    assert read(content.encode()) == ("CSV of MetaTrader", three())
    assert wrong(content.replace("10:01:00", "10:61:00").encode()) == {
        "line 3": "timestamp is not a time such as 2021-12-31 23:01:00"
    }
    # Where no trades are known, its ticks are all there is.
    ticks = content.replace("TICKVOL", "SPREAD").replace("<VOL>", "<TICKVOL>")
    assert read(ticks.encode()) == ("CSV of MetaTrader", three())
    days = "<DATE>,<OPEN>,<HIGH>,<LOW>,<CLOSE>,<TICKVOL>,<VOL>,<SPREAD>\n2025.03.03,10,12,9,11,125,5.5,8\n"
    assert read(days.encode(), Rules(BAR_SIZES["1d"], NOW))[1][0][0] == datetime(2025, 3, 3, tzinfo=UTC)


@pytest.mark.parametrize("day", ["2025-03-02", "2025.03.02", "2025/03/02", "20250302"])
@pytest.mark.parametrize(
    "clock", ["10:00", "10:00:00", "10:00:00.000", "1000", "100000", "10:00:00Z", "05:00:00-05:00"]
)
def test_a_day_and_a_clock_are_read_in_each_spelling(day, clock):
    content = f"Date,Time,Open,High,Low,Close,Volume\n{day},{clock},10,12,9,11,5.5\n2025-03-02,10:01,10,12,9,11,5.5\n"
    assert read(content.encode()) == ("CSV", three()[:2])


def test_an_hour_of_one_digit_and_a_time_beside_its_date_are_read():
    header = "Date,Time,Open,High,Low,Close,Volume\n"
    assert read(f"{header}2025-03-02,9:30,10,12,9,11,5.5\n".encode())[1][0][0] == START - 30 * MINUTE
    for time in (f"{seconds(0)}", "2025-03-02 10:00:00", "2025-03-02T10:00Z"):
        assert read(f"{header}any day,{time},10,12,9,11,5.5\n".encode())[1][0][0] == START


@pytest.mark.parametrize("unit", [1, 1_000])
def test_cryptodatadownloads_files_begin_with_their_address_and_their_newest_bar(unit):
    header = "unix,date,symbol,open,high,low,close,Volume BTC,Volume USD"
    lines = [f"{seconds(minute) * unit},any time,BTC/USD,10,12,9,11,5.5,60.5" for minute in reversed(range(3))]
    content = "\n".join(["https://www.CryptoDataDownload.com", header, *lines]).encode()
    assert read(content) == ("CSV of CryptoDataDownload", three()[::-1])
    assert wrong(content.replace(b",11,", b",x,", 2)) == {
        "line 3": "close is not a number",
        "line 4": "close is not a number",
    }
    counted = content.replace(b"USD\n", b"USDT,tradecount\n", 1).replace(b"60.5", b"60.5,7")
    assert read(counted)[1] == three(7)[::-1]


def test_of_several_times_the_first_known_name_counts():
    line = f"{seconds(1)},2025-03-01,{START:%Y-%m-%dT%H:%M},10,12,9,11,5.5"
    for names, at in (("unix,date,other", START + MINUTE), ("unix,day,time", START), ("unix,day,timestamp", START)):
        assert read(f"{names},open,high,low,close,volume\n{line}\n".encode())[1][0][0] == at


def test_tradingviews_indices_have_no_volume_and_none_is_read():
    lines = [f"{seconds(minute)},10,12,9,11,3.5" for minute in range(3)]
    content = "\n".join(["time,open,high,low,close,MA", *lines])
    assert read(content.encode()) == ("CSV of TradingView without volume", [(*bar[:5], 0.0) for bar in three()])
    # A volume by a name that is not known is not taken for none.
    for name in ("Volume BTC", "qty", "Quote Amount"):
        assert malformed(content.replace("MA", name).encode()) == {
            "line 1": f"must {layouts.KNOWN}; it names no volume"
        }


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_counted_alike_in_each_encoding_and_with_each_end(monkeypatch, encoding, end):
    monkeypatch.setattr(layouts, "BLOCK_BYTES", 1_001)
    mark = "" if encoding in ("utf-8-sig", "utf-16") else "\ufeff"
    lines = [f"{line},größer 値 \N{SLIGHTLY SMILING FACE}" for line in csv_of(range(300)).decode().splitlines()]
    content = (mark + end.join(lines)).encode(encoding)
    assert read(content)[1] == [(START + minute * MINUTE, 10, 12, 9, 11, 5.5) for minute in range(300)]
    lines[200] = lines[200].replace(",12,", ",twelve,")
    assert wrong((mark + end.join(lines)).encode(encoding)) == {"line 201": "high is not a number"}


def test_excels_unicode_text_is_read():
    lines = csv_of(range(3)).decode().replace(",", "\t").splitlines()
    assert read("\r\n".join(lines).encode("utf-16")) == ("CSV", three())


def test_a_header_in_latin_1_is_told_its_line_and_its_rows_are_read_where_nothing_of_them_is_wanted():
    content = b"\n" + csv_of(range(3)).replace(b"volume", "volume,Größe".encode("latin-1")).replace(b"5.5", b"5.5,1")
    assert malformed(content) == {"line 2": "is not in UTF-8, perhaps in Latin-1; save the file as UTF-8"}
    assert read(content.replace("Größe".encode("latin-1"), b"note").replace(b",1\n", b",\xf6\n"))[1] == three()
    assert wrong(content.replace("Größe".encode("latin-1"), b"note").replace(b"9,11", b"9,1\xf6")) == dict.fromkeys(
        ("line 3", "line 4", "line 5"), "close is not a number"
    )


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (csv_of([0]).decode().encode("utf-16-le"), "has zero bytes and so is no text in UTF-8, perhaps UTF-16"),
        (csv_of([0]).decode().encode("utf-32"), "is text in UTF-32; save it as UTF-8"),
        (lzma.compress(csv_of([0])), "is packed by xz; pack it by gzip or zip, or not at all"),
        (bz2.compress(csv_of([0])), "is packed by bzip2; pack it by gzip or zip, or not at all"),
        (b"(\xb5/\xfd\0", "is packed by zstd"),
        (b"7z\xbc\xaf\x27\x1c\0", "is packed by 7-Zip"),
        (b"Rar!\x1a\x07\0", "is packed by RAR"),
        (b"\xd0\xcf\x11\xe0\xa1", "is a workbook, as of Excel; save its sheet as CSV"),
        (b"%PDF-1.7", "is a PDF"),
        (b"SQLite format 3\0", "is a database of SQLite"),
        (b"\n<!DOCTYPE html><html>", "is a page of the web"),
        (b'\xef\xbb\xbf [{"open": 1}]', "is JSON"),
        (b"a.csv".ljust(257, b"\0") + b"ustar\0", "is a tar; pack its files in a zip"),
    ],
)
def test_what_else_people_have_is_named_with_what_to_do(content, why):
    told = malformed(content)["file"]
    assert told.startswith(why)
    assert malformed(gzip.compress(content)) == {"file": told}
    assert malformed(zip_of(x=csv_of([0]), y=gzip.compress(content))) == {"y.csv": told}


def test_what_is_packed_twice_is_told_so():
    twice = "is packed twice; unpack it once"
    for packed in (gzip.compress(csv_of([0])), zip_of(x=csv_of([0]))):
        assert malformed(gzip.compress(packed)) == {"file": twice}
    assert malformed(zip_of(x=csv_of([0]), y=zip_of(x=csv_of([1])))) == {"y.csv": twice}


def test_a_workbook_is_told_apart_from_a_zip():
    for member in ("[Content_Types].xml", "content.xml"):
        content = BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr(member, "")
            archive.writestr("x.xml", "")
        assert malformed(content.getvalue()) == {"file": "is a workbook, as of Excel; save its sheet as CSV"}


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


def test_a_zip_whose_directory_names_no_place_or_no_text_is_refused():
    content = bytearray(zip_of(x=csv_of([0])))
    end, entry = content.rindex(b"PK\x05\x06"), content.rindex(b"PK\x01\x02")
    beyond, nameless = bytearray(content), bytearray(content)
    struct.pack_into("<I", beyond, end + 16, struct.unpack_from("<I", content, end + 16)[0] + 1_000)
    assert malformed(bytes(beyond)) == {
        "file": "cannot be unpacked: the zip's directory names places before its beginning"
    }
    struct.pack_into("<H", nameless, entry + 8, 0x800)
    nameless[entry + 46] = 0xFF
    assert "cannot be unpacked: 'utf-8' codec can't decode" in malformed(bytes(nameless))["file"]


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
    yield zip_of(x=gzip.compress(csv_of([0]))[:-20])
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


def test_a_year_that_no_calendar_has_makes_its_own_row_wrong():
    content = csv_of([0, 1]).replace(b"2025-03-02 10:00", b"-2025-03-02 10:00")
    assert wrong(content) == {"line 2": "timestamp is before 1970"}
    for year in (10_000, 200_000):
        packed = BytesIO()
        time = pl.lit((year - 1970) * 365 * 86_400_000_000).cast(pl.Datetime("us"))
        table(1).with_columns(time=time).write_parquet(packed)
        assert wrong(packed.getvalue()) == {"row 1": "the bar has not ended yet"}
    for days in (-(2**31), 2**31 - 1):
        packed = BytesIO()
        table(1).with_columns(time=pl.lit(days, dtype=pl.Int32).cast(pl.Date)).write_parquet(packed)
        assert set(wrong(packed.getvalue())) == {"row 1"}


def test_bars_before_1970_are_wrong_in_tables_too():
    content = BytesIO()
    table(1).with_columns(time=pl.lit(EPOCH - MINUTE)).write_parquet(content)
    assert wrong(content.getvalue()) == {"row 1": "timestamp is before 1970"}
