"""Whatever is in a file: its bars are read, or it is refused by a line or a place, and never anything else."""

import gzip
import tempfile
import zipfile
from datetime import UTC, datetime, timedelta
from io import BytesIO

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.bar_sizes import BAR_SIZES
from libs.errors import Invalid
from services.marketdata import imports, layouts
from services.marketdata.domain import ImportLinesInvalid
from services.marketdata.imports import NAMED_LINES_MAX, Rules, check, slices
from tests.examples import examples

RULES = Rules(BAR_SIZES["1m"], datetime(2026, 6, 1, tzinfo=UTC))
START = datetime(2025, 3, 2, 10, 0, tzinfo=UTC)
TIMES = [START + minute * timedelta(minutes=1) for minute in range(12)]
PRICES = "10,12,9,11"


def text_of(header: str, row: str) -> str:
    rows = [
        row.format(at=at, unix=int(at.timestamp()), ms=int(at.timestamp()) * 1_000, end=int(at.timestamp()) + 59)
        for at in TIMES
    ]
    return "\n".join([*([header] if header else []), *rows, ""])


TEXTS = [
    text_of("timestamp,open,high,low,close,volume", f"{{at:%Y-%m-%d %H:%M:%S}},{PRICES},5.5"),
    text_of(
        "Date;Time;Open;High;Low;Close;Volume;closed", f"{{at:%Y-%m-%d;%H:%M}};{PRICES};5.5;true".replace(",", ";")
    ),
    text_of(
        "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<TICKVOL>\t<VOL>\t<SPREAD>",
        f"{{at:%Y.%m.%d\t%H:%M:%S}}\t{PRICES}\t5\t6\t7".replace(",", "\t"),
    ),
    text_of(
        "https://www.CryptoDataDownload.com\nunix,date,symbol,open,high,low,close,Volume BTC,Volume USD",
        f"{{ms}},{{at:%Y-%m-%d}},BTC/USD,{PRICES},5.5,60.5",
    ),
    text_of("time,open,high,low,close", f"{{at:%Y-%m-%dT%H:%M:%S}}-00:00,{PRICES}"),
    text_of("time,open,high,low,close,Volume,Größe", '{unix},"10",12,9,11,5.5,"a ""b"", c"'),
    text_of("", f"{{ms}},{PRICES},5.5,{{end}}000,60.5,7,2.5,27.5,0"),
    text_of("", f"{{unix}},{PRICES},5.5,7"),
]


def zip_of(name: str, content: bytes, kind: int = zipfile.ZIP_DEFLATED) -> bytes:
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", kind) as archive:
        archive.writestr(name, content)
        archive.writestr("README.txt", b"read me")
        archive.writestr("x.csv.CHECKSUM", b"0" * 64 + b"  other.csv")
    return packed.getvalue()


WAYS = {
    "plain": lambda text: text.encode(),
    "with a mark": lambda text: text.encode("utf-8-sig"),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16, the other way": lambda text: ("\ufeff" + text).encode("utf-16-be"),
    "Windows": lambda text: text.replace("\n", "\r\n").encode(),
    "old Mac": lambda text: text.replace("\n", "\r").encode(),
    "gzip": lambda text: gzip.compress(text.encode()),
    "zip": lambda text: zip_of("x.csv", text.encode()),
    "gzip in a zip": lambda text: zip_of("x.csv.gz", gzip.compress(text.encode("utf-16"))),
}


def tables() -> list[bytes]:
    bars = pl.DataFrame({"time": TIMES, **dict.fromkeys(("open", "high", "low", "close"), 10.0), "volume": 1.0})
    found = []
    for kind in ("write_parquet", "write_ipc", "write_ipc_stream"):
        content = BytesIO()
        getattr(bars, kind)(content)
        found.append(content.getvalue())
    return found


FILES = [way(text) for text in TEXTS for way in WAYS.values()]
FILES += [zip_of("x.csv", TEXTS[0].encode(), kind) for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)]
FILES += [*tables(), gzip.compress(tables()[2])]
PIECES = [
    b"\n",
    b"\r",
    b"\0",
    b",",
    b";",
    b"\t",
    b'"',
    b"-",
    b".",
    b"inf",
    b"nan",
    b"9" * 20,
    b"1e308",
    b"\xff\xfe",
    b"\xf6",
]
CHARACTERS = '0123456789,;\t\n"-.:+eTZ <>/ahö値'
BLOCK_BYTES = st.sampled_from([300, 1_000_000])


@st.composite
def mangled_files(draw) -> bytes:
    content = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 4))):
        place, count = draw(st.integers(0, len(content))), draw(st.integers(0, 40))
        content[place : place + count] = draw(st.one_of(st.sampled_from(PIECES), st.binary(max_size=8)))
    return bytes(content)


@st.composite
def mangled_texts(draw) -> str:
    text = draw(st.sampled_from(TEXTS))
    for _ in range(draw(st.integers(0, 4))):
        place, count = draw(st.integers(0, len(text))), draw(st.integers(0, 40))
        text = text[:place] + draw(st.text(CHARACTERS, max_size=8)) + text[place + count :]
    return text


def outcome(content: bytes) -> tuple[str, dict[str, str]] | list[tuple[object, ...]]:
    """The bars of a file, or why there are none and where."""
    with tempfile.TemporaryFile() as file:
        file.write(content)
        try:
            checked = check(file, RULES)
        except Invalid as refusal:
            places = dict(refusal.violations)
            assert 0 < len(places) <= NAMED_LINES_MAX
            assert all(place and why for place, why in places.items())
            if isinstance(refusal, ImportLinesInvalid):
                assert all(place.rpartition(" ")[2].isdecimal() for place in places)
            return refusal.reason, places
        bars = [row for some in slices(file, RULES) for row in some.rows()]
    assert checked.row_count == len(bars) > 0
    assert all(at < RULES.now and at.second == at.microsecond == 0 for at, *_ in bars)
    assert all(low <= min(first, last) and high >= max(first, last) for _, first, high, low, last, *_ in bars)
    return bars


def outcome_in_blocks(content: bytes, block_bytes: int) -> object:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(layouts, "BLOCK_BYTES", block_bytes)
        return outcome(content)


@pytest.mark.examples
@examples(400)
@given(mangled_files(), BLOCK_BYTES)
def test_a_mangled_file_is_read_or_refused_by_a_place(content, block_bytes):
    outcome_in_blocks(content, block_bytes)


@pytest.mark.examples
@examples(150)
@given(mangled_texts(), BLOCK_BYTES)
def test_a_mangled_text_says_the_same_in_whatever_way_it_comes(text, block_bytes):
    found = outcome(text.encode())
    for way, written in WAYS.items():
        assert outcome_in_blocks(written(text), block_bytes) == found, way


@pytest.mark.examples
@examples(100)
@given(st.sampled_from(TEXTS), st.sampled_from(list(WAYS.values())), st.integers(0, len(TIMES)), BLOCK_BYTES)
def test_what_was_stored_of_a_file_is_passed_over_in_each(text, written, after, block_bytes):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(layouts, "BLOCK_BYTES", block_bytes)
        patched.setattr(imports, "SLICE_ROWS", 5)
        left = [row for some in slices(BytesIO(written(text)), RULES, after) for row in some.rows()]
    assert [at for at, *_ in left] == TIMES[after:]
