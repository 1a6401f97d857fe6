import os
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from tradeloom.marketdata.v1.marketdata_pb2 import Quote, StreamTicksResponse

from services.feeds.domain import (
    Aggressor,
    AssetClass,
    Instant,
    Instrument,
    Place,
    RecordedFile,
    ReplayFileInvalid,
    ReplaySource,
    Tick,
)
from services.feeds.lines import Pace
from services.feeds.sources.replay import NAMED_LINES_MAX, read_recording, read_recordings
from tests import recorded

HEADER = "timestamp,id,side,price,amount\n"


def write(folder: Path, text: str, name: str = "trades.csv") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return name


def refusal(folder: Path, name: str) -> dict[str, str]:
    with pytest.raises(ReplayFileInvalid) as caught:
        read_recording(folder, name)
    assert caught.value.metadata == {"file": name}
    return {
        field.removeprefix(f"replay.files[{name}]").strip(): problem
        for field, problem in caught.value.violations.items()
    }


def test_a_csv_file_is_played_in_the_order_of_its_times(tmp_path: Path):
    name = write(tmp_path, HEADER + "2000,9,sell,10.5,3\n1000,10,BUY,0.001413,2\n1000,8,sell,11,1.25\n")
    assert list(read_recording(tmp_path, name).ticks_after(0)) == [
        Tick(1_000_000_000, 11.0, 1.25, Aggressor.SELLER, "8"),
        Tick(1_000_000_000, 0.001413, 2.0, Aggressor.BUYER, "10"),
        Tick(2_000_000_000, 10.5, 3.0, Aggressor.SELLER, "9"),
    ]


def test_trades_of_one_moment_keep_their_order_where_ids_are_no_numbers(tmp_path: Path):
    name = write(tmp_path, HEADER + "1000,b,buy,1,1\n1000,a,buy,2,1\n1000,,buy,3,1\n1000,,buy,4,1\n")
    assert [tick.price for tick in read_recording(tmp_path, name).ticks_after(0)] == [1, 2, 3, 4]


def test_a_replay_goes_on_after_any_trade(tmp_path: Path):
    name = write(tmp_path, HEADER + "".join(f"{1000 + number},{number},buy,{number + 1},1\n" for number in range(50)))
    recording = read_recording(tmp_path, name)
    whole = list(recording.ticks_after(0))
    assert len(whole) == len(recording) == 50
    for position in (0, 1, 17, 49, 50):
        assert list(recording.ticks_after(position)) == whole[position:]


def test_every_wrong_line_is_named_by_its_number_with_every_rule_it_breaks(tmp_path: Path):
    name = write(
        tmp_path,
        HEADER
        + "1000,1,buy,1,1\n1.5,2,buy,1,1\n1000,1,buy,1,1\n1000,4,hold,nan,0\n1000,5,buy,inf,1\n-1,6,buy,1,\n"
        + f"1000,{'é' * 33},buy,1,1\n1000,{'é' * 32},buy,1,1\n",
    )
    found = refusal(tmp_path, name)
    assert list(found) == ["line 3", "line 4", "line 5", "line 6", "line 7", "line 8"]
    assert "more than 64 bytes" in found["line 8"]
    assert "timestamp" in found["line 3"]
    assert "repeats" in found["line 4"]
    assert [word in found["line 5"] for word in ("side", "price", "amount")] == [True] * 3
    assert "price" in found["line 6"]
    assert [word in found["line 7"] for word in ("timestamp", "amount", "price")] == [True, True, False]


def test_a_file_of_wrong_lines_names_a_hundred_and_counts_the_rest(tmp_path: Path):
    name = write(tmp_path, HEADER + "x,,buy,1,1\n" * 250)
    found = refusal(tmp_path, name)
    assert len(found) == NAMED_LINES_MAX + 1
    assert found["lines"].startswith("250 are wrong")


def test_a_line_with_too_many_fields_is_named(tmp_path: Path):
    assert "line 3" in refusal(tmp_path, write(tmp_path, HEADER + "1000,1,buy,1,1\n1001,2,buy,1,1,7\n"))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.csv", b"", "at least one trade"),
        ("header.csv", HEADER.encode(), "has 0 trades"),
        ("columns.csv", b"timestamp,price\n1,1\n", "lacks the columns id, side, amount"),
        ("binary.csv", b"timestamp,id,side,price,amount\n\xff\xfe,1,buy,1,1\n", "UTF-8"),
        ("text.parquet", b"timestamp", "is not Parquet"),
        ("notes.txt", b"timestamp", "must end in"),
    ],
)
def test_what_is_no_file_of_trades_is_refused(tmp_path: Path, name: str, content: bytes, says: str):
    (tmp_path / name).write_bytes(content)
    assert says in " ".join(refusal(tmp_path, name).values())


def test_parquet_with_times_as_times_is_read_too(tmp_path: Path):
    pl.DataFrame(
        {"timestamp": [1_600_000_000_123], "id": [7], "side": ["buy"], "price": [2.5], "amount": [1]}
    ).with_columns(pl.col("timestamp").cast(pl.Datetime("ms", "UTC"))).write_parquet(tmp_path / "trades.parquet")
    assert list(read_recording(tmp_path, "trades.parquet").ticks_after(0)) == [
        Tick(1_600_000_000_123_000_000, 2.5, 1.0, Aggressor.BUYER, "7")
    ]


def test_nothing_outside_the_replay_folder_can_be_read(tmp_path: Path):
    folder = tmp_path / "replays"
    folder.mkdir()
    secret = tmp_path / "secret.csv"
    secret.write_text(HEADER + "1,1,buy,1,1\n", encoding="utf-8")
    (folder / "link.csv").symlink_to(secret)
    (folder / "up").symlink_to(tmp_path)
    (folder / "loop.csv").symlink_to(folder / "loop.csv")
    (folder / "folder.csv").mkdir()
    os.mkfifo(folder / "pipe.csv")
    for name in (
        "../secret.csv",
        str(secret),
        "link.csv",
        "up/secret.csv",
        "x/../../secret.csv",
        "loop.csv",
        "folder.csv",
        "pipe.csv",
        "none.csv",
        "a\0b.csv",
    ):
        assert refusal(folder, name) == {"": "is no file in the replay folder"}


def test_a_link_that_stays_inside_the_folder_and_a_subfolder_are_fine(tmp_path: Path):
    (tmp_path / "year").mkdir()
    write(tmp_path / "year", HEADER + "1,1,buy,1,1\n")
    (tmp_path / "link.csv").symlink_to(tmp_path / "year" / "trades.csv")
    assert len(read_recording(tmp_path, "year/trades.csv")) == len(read_recording(tmp_path, "link.csv")) == 1


def test_a_folder_that_does_not_exist_holds_no_file(tmp_path: Path):
    assert refusal(tmp_path / "none", "trades.csv") == {"": "is no file in the replay folder"}


def test_the_recorded_trades_come_as_the_file_has_them():
    recording = read_recording(recorded.trades().parent, recorded.TRADES)
    file = pl.read_parquet(recorded.trades())
    assert [
        (t.time_ns // 1_000_000, t.trade_id, t.price, t.quantity, t.aggressor.value) for t in recording.ticks_after(0)
    ] == [
        (row["timestamp"], row["id"], row["price"], row["amount"], {"buy": "buyer", "sell": "seller"}[row["side"]])
        for row in file.iter_rows(named=True)
    ]


# Layouts, and several files.

SOLD = Tick(1_609_459_200_123_000_000, 100.5, 2.0, Aggressor.SELLER, "7")


@pytest.mark.parametrize(
    "text",
    [
        "timestamp,id,side,price,amount\n1609459200123,7,sell,100.5,2\n",
        "timestamp,trade_id,price,quantity,buyer_maker\n1609459200123,7,100.5,2,True\n",
        "id,price,qty,quote_qty,time,is_buyer_maker\n7,100.5,2,201,1609459200123,true\n",
        "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n7,100.5,2,1,2,1609459200123,true\n",
        "7,100.5,2,201,1609459200123,True,True\n",
        "7,100.5,2,1,2,1609459200123456,True,True\n",
    ],
)
def test_files_of_venues_are_recognised_by_their_columns(tmp_path: Path, text: str):
    assert list(read_recording(tmp_path, write(tmp_path, text)).ticks_after(0)) == [SOLD]


def test_krakens_files_have_no_ids_and_no_sides(tmp_path: Path):
    name = write(tmp_path, "1609459200.1234,100.5,2\n1609459200,99,1\n")
    assert list(read_recording(tmp_path, name).ticks_after(0)) == [
        Tick(1_609_459_200_000_000_000, 99.0, 1.0, None, ""),
        SOLD._replace(aggressor=None, trade_id=""),
    ]


def test_wrong_lines_of_a_file_without_a_header_are_counted_from_the_first(tmp_path: Path):
    name = write(tmp_path, "7,100.5,2,201,1609459200123,True,True\n8,0,2,201,1609459200123,perhaps,True\n")
    assert list(refusal(tmp_path, name)) == ["line 2"]


def test_the_recorded_trades_of_binance_are_read_as_polars_reads_them(tmp_path: Path):
    trades = pl.read_parquet(recorded.binance_trades())
    (tmp_path / "inside.parquet").write_bytes(recorded.binance_trades().read_bytes())
    ticks = list(read_recording(tmp_path, "inside.parquet").ticks_after(0))
    assert [(tick.price, tick.quantity, int(tick.trade_id)) for tick in ticks] == trades.sort("trade_id").select(
        "price", "quantity", "trade_id"
    ).rows()
    sold = trades.filter(pl.col("buyer_maker") == "True").height
    assert sum(tick.aggressor is Aggressor.SELLER for tick in ticks) == sold


def test_files_of_one_instrument_are_merged_by_time_and_what_overlaps_is_played_once(tmp_path: Path):
    first = write(tmp_path, HEADER + "1000,1,buy,1,1\n3000,3,buy,3,1\n4000,4,buy,4,1\n", "first.csv")
    second = write(tmp_path, HEADER + "2000,2,sell,2,1\n4000,4,buy,4,1\n5000,5,buy,5,1\n", "second.csv")
    source = ReplaySource((RecordedFile(first, instrument("A")), RecordedFile(second, instrument("A"))), 0)
    [recording] = read_recordings(tmp_path, source).values()
    assert [tick.trade_id for tick in recording.ticks_after(0)] == ["1", "2", "3", "4", "5"]


def instrument(symbol: str) -> Instrument:
    return Instrument(
        venue="FILE",
        symbol=symbol,
        description="",
        asset_class=AssetClass.CRYPTO,
        base_asset=symbol,
        quote_asset="USDT",
        tick_size=Decimal("0.01"),
        lot_size=Decimal("0.01"),
        minimum_notional=Decimal(0),
        maker_fee_rate=Decimal(0),
        taker_fee_rate=Decimal(0),
        has_book=False,
    )


@pytest.mark.parametrize("speed", [0.0, 1_000.0])
def test_instruments_that_are_replayed_together_are_never_more_than_a_second_apart(speed: float):
    """Also where one is held up, as by who stores its trades."""
    pace = Pace(speed, Instant(0, 0))
    times = {"FILE:A": range(1_000, 61_000, 10), "FILE:B": range(1_005, 61_000, 700)}
    for name, milliseconds in times.items():
        place = Place(
            instrument_id=name, epoch=1, position_epoch=1, sequence=0, position=0, offset_ns=0, market_time_ns=0
        )
        ticks = [Tick(at * 1_000_000, 1.0, 1.0, None, str(at)) for at in milliseconds]
        pace.add(iter(ticks), place, Quote())
    told: dict[str, int] = dict.fromkeys(times, 0)
    fast, slow = pace.lines
    for turn in range(10_000):
        now = Instant(0, turn * 1_000_000)
        for line in pace.lines:
            held_up = line is slow and turn % 3
            for batch in line.cut(now, 0 if held_up else 2**62):
                message = StreamTicksResponse.FromString(batch.response)
                told[line.instrument_id] = message.batches[0].ticks[-1].time.ToMilliseconds()
        assert fast.has_ended or told["FILE:A"] <= slow.next_ns // 1_000_000 + 1_000
        if speed:
            assert max(told.values()) <= 1_000 + turn * speed
    assert told == {name: milliseconds[-1] for name, milliseconds in times.items()}
