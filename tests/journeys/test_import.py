"""`tradeloom import` on a running stack: what a person reads, and with which exit code it ends."""

import gzip
import hashlib
import re
import zipfile
from datetime import UTC, datetime, timedelta

from tests.stack import Stack

HEADER = "timestamp,open,high,low,close,volume\n"
BARS = "".join(f"2024-05-06 07:{minute:02}:00,10,12,9,11,5\n" for minute in range(40))
INSTRUMENT = "SIM:EURUSD"
MINUTES = ("--instrument", INSTRUMENT, "--bar-size", "1m")


def test_a_file_is_imported_once_and_its_counts_are_told(stack: Stack, tmp_path):
    file = tmp_path / "bars.csv"
    file.write_text(HEADER + BARS)
    first = stack.command("import", str(file), *MINUTES)
    assert first.returncode == 0, first.stderr
    assert "read       40 bars, 2024-05-06 07:00 to 2024-05-06 07:39 UTC" in first.stdout
    assert "inserted   40" in first.stdout
    again = stack.command("import", str(file), *MINUTES)
    assert again.returncode == 0
    assert "inserted   0\nchanged    0\nunchanged  40" in again.stdout


def test_every_wrong_line_is_named_by_its_number_and_nothing_is_imported(stack: Stack, tmp_path):
    file = tmp_path / "broken.csv"
    file.write_text(HEADER + BARS.replace("07:05:00,10", "07:05:00,ten").replace("07:09:00", "07:09:30"))
    done = stack.command("import", str(file), *MINUTES)
    assert done.returncode == 1
    assert "line 7: open is not a number\nline 11: timestamp is not where a bar of 1m opens\n" in done.stdout
    assert "2 lines are wrong" in done.stderr
    assert "nothing was imported" in done.stderr


def test_of_very_many_wrong_lines_the_first_are_named_and_the_rest_counted(stack: Stack, tmp_path):
    file = tmp_path / "broken.csv"
    file.write_text(HEADER + "x\n" * 500)
    done = stack.command("import", str(file), *MINUTES)
    assert done.returncode == 1
    *named, more = done.stdout.splitlines()
    assert named[0] == "line 2: has 1 fields, the header 6"
    assert len(named) == 40
    assert more == "and 460 more lines"


def test_hours_are_not_imported_as_minutes_but_of_a_sparse_market(stack: Stack, tmp_path):
    file = tmp_path / "hours.csv"
    file.write_text(HEADER + "".join(f"2024-05-09 {hour:02}:00:00,10,12,9,11,5\n" for hour in range(8)))
    assert stack.command("import", str(file), "--instrument", INSTRUMENT).returncode == 2
    done = stack.command("import", str(file), *MINUTES)
    assert done.returncode == 1
    assert "bar_size is 1m, and all bars stand 1h or multiples of it apart" in done.stderr
    assert "inserted   8" in stack.command("import", str(file), *MINUTES, "--sparse").stdout


def test_several_files_are_imported_and_what_is_wrong_with_one_is_told(stack: Stack, tmp_path):
    right, packed, wrong = tmp_path / "right.csv", tmp_path / "packed.csv.gz", tmp_path / "wrong.csv"
    right.write_text(HEADER + "2024-05-07 07:00:00,10,12,9,11,5\n")
    packed.write_bytes(gzip.compress((HEADER + "2024-05-07 07:01:00,10,12,9,11,5\n").encode()))
    wrong.write_text("a,b\n1,2\n")
    done = stack.command("import", str(right), str(wrong), str(packed), *MINUTES)
    assert done.returncode == 1
    assert done.stdout.count("inserted   1") == 2
    assert "UTC, CSV, gzip" in done.stdout
    assert "wrong.csv: line 1 must name time" in done.stderr
    assert "; nothing was imported" in done.stderr


def test_a_checksum_beside_a_file_is_held_against_it(stack: Stack, tmp_path):
    file, checksum = tmp_path / "sums.csv", tmp_path / "sums.csv.CHECKSUM"
    file.write_text(HEADER + "2024-05-12 07:00:00,10,12,9,11,5\n")
    checksum.write_text(f"{'0' * 64}  sums.csv\n")
    other = stack.command("import", str(file), *MINUTES)
    assert other.returncode == 1
    assert "sums.csv is not what sums.csv.CHECKSUM is of: fetch it again; nothing was imported" in other.stderr
    checksum.write_text(f"{hashlib.sha256(file.read_bytes()).hexdigest()}  sums.csv\n")
    assert "inserted   1" in stack.command("import", str(file), *MINUTES).stdout


def test_where_there_is_no_terminal_lines_tell_how_far_it_is(stack: Stack, tmp_path):
    file, first = tmp_path / "many.csv", datetime(2022, 1, 1, tzinfo=UTC)
    times = (f"{first + minute * timedelta(minutes=1):%Y-%m-%d %H:%M}" for minute in range(200_000))
    file.write_text(HEADER + "".join(f"{time},10,12,9,11,5\n" for time in times))
    done = stack.command("import", str(file), *MINUTES)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("read       200000 bars")
    reading, *further = done.stderr.splitlines()
    assert reading == "many.csv: reading"
    assert further
    for line in further:
        assert re.fullmatch(r"many\.csv: ((sending|storing) \d+ %|checking( \d+ rows)?)", line)


def test_files_as_vendors_offer_them_are_imported(stack: Stack, tmp_path):
    metatrader, download, excel = (tmp_path / name for name in ("EURUSD_M1.csv", "Binance_1m.zip", "book.xlsx"))
    rows = "".join(f"2024.05.13\t07:{minute:02}:00\t10\t12\t9\t11\t125\t5\t8\r\n" for minute in range(3))
    names = "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>\r\n"
    metatrader.write_bytes((names + rows).encode("utf-16"))
    newest_first = "".join(f"{1715583600 + minute * 60}000,,,10,12,9,11,5,55\n" for minute in (5, 4, 3))
    with zipfile.ZipFile(download, "w") as archive:
        archive.writestr("README.txt", "read me")
        archive.writestr(
            "bars.csv",
            "https://www.CryptoDataDownload.com\n"
            f"unix,date,symbol,open,high,low,close,Volume BTC,Volume USD\n{newest_first}",
        )
    with zipfile.ZipFile(excel, "w") as archive:
        archive.writestr("[Content_Types].xml", "")
    done = stack.command("import", *map(str, (metatrader, download, excel)), *MINUTES)
    assert done.returncode == 1
    assert "3 bars, 2024-05-13 07:00 to 2024-05-13 07:02 UTC, CSV of MetaTrader\ninserted   3" in done.stdout
    assert "to 2024-05-13 07:05 UTC, CSV of CryptoDataDownload, zip\ninserted   3" in done.stdout
    assert "book.xlsx: file is a workbook, as of Excel; save its sheet as CSV; nothing was imported" in done.stderr


def test_what_was_imported_is_exported_and_imported_again(stack: Stack, tmp_path):
    file = tmp_path / "bars.csv"
    file.write_text(HEADER + BARS.replace("2024-05-06", "2024-05-08"))
    assert stack.command("import", str(file), *MINUTES).returncode == 0
    period = ("--start", "2024-05-08T07:10Z", "--end", "2024-05-08T09:20+02:00")
    for name in ("out.csv", "out.csv.gz", "out.parquet", "out.arrow"):
        out = tmp_path / name
        done = stack.command("export", INSTRUMENT, *period, "-o", str(out))
        assert done.returncode == 0, done.stderr
        assert f"exported   10 bars into {out}" in done.stdout
        again = stack.command("import", str(out), *MINUTES)
        assert "inserted   0\nchanged    0\nunchanged  10" in again.stdout, again.stderr
    left = [path.name for path in tmp_path.iterdir()]
    assert sorted(left) == ["bars.csv", "out.arrow", "out.csv", "out.csv.gz", "out.parquet"]
    unknown = stack.command("export", "SIM:NOTHING", "-o", str(tmp_path / "none.csv"))
    assert unknown.returncode == 1
    assert "no instrument is called SIM:NOTHING" in unknown.stderr
    assert "the format is one of" in stack.command("export", INSTRUMENT, "-o", str(tmp_path / "none")).stderr


def test_what_was_imported_is_deleted_once_somebody_says_yes(stack: Stack, tmp_path):
    file = tmp_path / "bars.csv"
    file.write_text(HEADER + BARS.replace("2024-05-06", "2024-05-11"))
    assert stack.command("import", str(file), *MINUTES).returncode == 0
    period = ("--bar-size", "1m", "--start", "2024-05-11T07:10Z", "--end", "2024-05-11T09:20+02:00")
    unasked = stack.command("candles", "delete", INSTRUMENT, *period)
    assert unasked.returncode == 1
    assert "10 imported bars of 1m would be deleted" in unasked.stdout
    done = stack.command("candles", "delete", INSTRUMENT, *period, "--yes")
    assert done.returncode == 0, done.stderr
    assert "deleted    10\nremade     0 of them" in done.stdout
    assert "no imported bars are there" in stack.command("candles", "delete", INSTRUMENT, *period, "--yes").stdout
    again = stack.command("import", str(file), *MINUTES)
    assert "inserted   10\nchanged    0\nunchanged  30" in again.stdout, again.stderr
    unknown = stack.command("candles", "delete", "SIM:NOTHING", *period)
    assert unknown.returncode == 1
    assert "no instrument is called SIM:NOTHING; nothing was deleted" in unknown.stderr


def test_what_is_not_under_way_cannot_be_cancelled(stack: Stack, tmp_path):
    file = tmp_path / "bars.csv"
    file.write_text(HEADER + BARS.replace("2024-05-06", "2024-05-10"))
    done = stack.command("import", str(file), *MINUTES, "--cancel")
    assert done.returncode == 0, done.stderr
    assert "cancelled  nothing: no such import is under way" in done.stdout


def test_an_unknown_instrument_and_a_missing_file_are_refused_plainly(stack: Stack, tmp_path):
    file = tmp_path / "bars.csv"
    file.write_text(HEADER + BARS)
    unknown = stack.command("import", str(file), "--instrument", "SIM:NOTHING", "--bar-size", "1m")
    assert unknown.returncode == 1
    assert "no instrument is called SIM:NOTHING" in unknown.stderr
    missing = stack.command("import", str(tmp_path / "none.csv"), *MINUTES)
    assert missing.returncode == 1
    assert "No such file" in missing.stderr
