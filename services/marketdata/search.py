"""Finds instruments: by the words that they are known by, and by words alike.

The words are letters and digits of id, symbol, assets and description, in lower case; what stands between them is not
looked at. Every word of a query has to be found. Each page asks for what is spelled as asked first, and for what is only
alike when that is not enough: for each word that begins none of theirs, which are like it, and then who has them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from libs.mesh import pages
from libs.store.database import Connection
from services.marketdata.domain import Instrument, InstrumentFilter
from services.marketdata.store import COLUMNS, instrument_from

SCORE_MAX = 1_000
"""Of a word that is spelled so; likeness is told in so many steps, so that a page token holds it exactly."""
EXCHANGED_SCORE = 900
EXCHANGED_LETTERS = range(3, 7)
"""In words so short two exchanged neighbours leave few trigrams alike, so each exchange is looked for."""
ALIKE_WORDS_MAX = 8
"""Of one word, the most alike."""
ANYWHERE_LETTERS_MIN = 3
"""Shorter words are found only where a word begins: the index knows no parts so small."""
BETWEEN_WORDS = re.compile(r"[\x00-\x2f:-@\[-`{-\x7f]+")


class Tier(IntEnum):
    """How well an instrument answers a query, the best first."""

    EXACT = 0
    """It is the symbol or the id."""
    BEGINNING = 1
    """It begins the symbol or the id."""
    WORDS = 2
    """Each word begins one of the instrument's."""
    INSIDE = 3
    """Each word is somewhere in it."""
    ALIKE = 4


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page ended: results are in the order of tier, score (the highest first) and id."""

    tier: int
    score: int
    instrument_id: str


def token_after(place: Place) -> str:
    return pages.token_after(place.tier, place.score, place.instrument_id)


def place_after(token: str) -> Place | None:
    """The place that a page token stands for; None for the first page."""
    if not (key := pages.key_of(token, 3)):
        return None
    match key:
        case [int(tier), int(score), str(instrument_id)] if 0 <= score <= SCORE_MAX:
            return Place(tier, score, instrument_id)
    raise pages.PageTokenInvalid({"page_token": "is not one that was given out"})


@dataclass(frozen=True, slots=True)
class Found:
    instrument: Instrument
    place: Place


@dataclass(frozen=True, slots=True)
class Statement:
    text: str
    arguments: Sequence[Any]


class Arguments(list[Any]):
    """A statement's, each with its number."""

    def add(self, value: Any) -> str:
        self.append(value)
        return f"${len(self)}"


async def search(
    rows: Connection, query: str, wanted: InstrumentFilter, after: Place | None, limit: int
) -> list[Found]:
    """At most limit instruments after the place; all of them, in the order of their ids, if the query is blank."""
    words = words_of(query)
    if query.strip() and not words:
        return []
    found: list[Found] = []
    if after is None or after.tier < Tier.ALIKE:
        found = await _read(rows, spelled_so(words, wanted, after, limit))
        after = None
    if words and len(found) < limit and (others := await words_alike(rows, words)):
        found += await _read(rows, alike(words, others, wanted, after, limit - len(found)))
    return found


def words_of(text: str) -> list[str]:
    """Each word once, as the column search_text has them."""
    return list(dict.fromkeys(BETWEEN_WORDS.sub(" ", text.lower()).split()))


async def words_alike(rows: Connection, words: Sequence[str]) -> dict[str, dict[str, int]]:
    """By each word that has some: the words of instruments that are most like it, and how much."""
    home = await rows.fetchval(
        """
        SELECT quote_ident(nspname) FROM pg_extension JOIN pg_namespace ON pg_namespace.oid = extnamespace
        WHERE extname = 'pg_trgm' AND has_schema_privilege(extnamespace, 'USAGE')
        """
    )
    if home is None:
        return {}
    others: dict[str, dict[str, int]] = {}
    for word in words:
        statement = most_alike(word, home)
        found = await rows.fetch(statement.text, *statement.arguments)
        if found:
            others[word] = {row["word"]: row["score"] for row in found}
    return others


def most_alike(word: str, home: str) -> Statement:
    """The words that share most trigrams with this one, or have two neighbours exchanged; none if it begins a word.

    Three of ten trigrams must be shared, which is what pg_trgm's operator asks for unless the database is set otherwise.
    """
    arguments = Arguments()
    asked = f"{arguments.add(word)}::text"
    conditions = [f"word OPERATOR({home}.%) {asked}"]
    score = f"{home}.similarity(word, {asked}) * {SCORE_MAX}"
    if len(word) in EXCHANGED_LETTERS:
        spellings = [f"word LIKE {arguments.add(f'{spelling}%')}" for spelling in exchanged(word)]
        conditions += spellings
        score = f"CASE WHEN {' OR '.join(spellings)} THEN {EXCHANGED_SCORE} ELSE {score} END"
    text = f"""
    SELECT word, round({score})::int AS score FROM instrument_words
    WHERE ({" OR ".join(conditions)})
    AND NOT EXISTS (SELECT FROM instrument_words WHERE word LIKE {arguments.add(f"{word}%")})
    ORDER BY score DESC, word LIMIT {ALIKE_WORDS_MAX}
    """
    return Statement(text, arguments)


def spelled_so(words: Sequence[str], wanted: InstrumentFilter, after: Place | None, limit: int) -> Statement:
    """Instruments in which every word is."""
    arguments = Arguments()
    conditions = [*_filtered(wanted, arguments), *(_is_in(word, arguments) for word in words)]
    tier = "0"
    if words:
        joined, beginnings = arguments.add("".join(words)), arguments.add([f"% {word}%" for word in words])
        keys = ("symbol_key", "lower(split_part(instrument_id, ':', 1)) || symbol_key")
        tier = f"""
        CASE WHEN {joined} IN ({", ".join(keys)}) THEN {Tier.EXACT:d}
        WHEN {" OR ".join(f"starts_with({key}, {joined})" for key in keys)} THEN {Tier.BEGINNING:d}
        WHEN search_text LIKE ALL ({beginnings}::text[]) THEN {Tier.WORDS:d} ELSE {Tier.INSIDE:d} END
        """
    following = ""
    if after is not None:
        place = f"({arguments.add(after.tier)}::bigint, {arguments.add(after.instrument_id)})"
        following = f"WHERE (tier, instrument_id) > {place}"
    text = f"""
    SELECT tier, 0 AS score, {COLUMNS} FROM (
      SELECT *, {tier} AS tier FROM instruments WHERE {" AND ".join(conditions) or "true"}) AS found
    {following} ORDER BY tier, instrument_id LIMIT {arguments.add(limit)}
    """
    return Statement(text, arguments)


def alike(
    words: Sequence[str],
    others: Mapping[str, Mapping[str, int]],
    wanted: InstrumentFilter,
    after: Place | None,
    limit: int,
) -> Statement:
    """Instruments in which every word is or one of the others of it, but not every word itself."""
    arguments = Arguments()
    conditions = _filtered(wanted, arguments)
    scores = []
    for word in words:
        spelled = {_pattern(word): SCORE_MAX}
        spelled |= {f"% {other} %": score for other, score in others.get(word, {}).items()}
        # Each pattern by itself: a condition of many makes Postgres read every instrument.
        conditions.append(f"""
          instrument_id IN (
            SELECT instrument_id FROM unnest({arguments.add([*spelled])}::text[]) AS pattern,
            LATERAL (SELECT instrument_id FROM instruments WHERE search_text LIKE pattern OFFSET 0) AS found)
        """)
        cases = (f"WHEN search_text LIKE {arguments.add(pattern)} THEN {score}" for pattern, score in spelled.items())
        scores.append(f"CASE {' '.join(cases)} END")
    conditions.append(f"NOT ({' AND '.join(_is_in(word, arguments) for word in words)})")
    following = ""
    if after is not None:
        place = f"({arguments.add(-after.score)}::bigint, {arguments.add(after.instrument_id)})"
        following = f"WHERE (-score, instrument_id) > {place}"
    text = f"""
    SELECT {Tier.ALIKE:d} AS tier, score, {COLUMNS} FROM (
      SELECT *, ({" + ".join(scores)}) / {len(words)} AS score FROM instruments WHERE {" AND ".join(conditions)}) AS found
    {following} ORDER BY -score, instrument_id LIMIT {arguments.add(limit)}
    """
    return Statement(text, arguments)


def exchanged(word: str) -> list[str]:
    """The word with two neighbours exchanged, each way there is."""
    return [word[:at] + word[at + 1] + word[at] + word[at + 2 :] for at in range(len(word) - 1)]


def _is_in(word: str, arguments: Arguments) -> str:
    return f"search_text LIKE {arguments.add(_pattern(word))}"


def _pattern(word: str) -> str:
    """Of the texts that the word is in."""
    return f"%{word}%" if len(word) >= ANYWHERE_LETTERS_MIN else f"% {word}%"


def _filtered(wanted: InstrumentFilter, arguments: Arguments) -> list[str]:
    conditions = []
    if wanted.venue:
        conditions.append(f"starts_with(instrument_id, {arguments.add(f'{wanted.venue}:')})")
    allowed = {
        "asset_class": [asset_class.value for asset_class in wanted.asset_classes],
        "base_asset": [wanted.base_asset] if wanted.base_asset else [],
        "quote_asset": [wanted.quote_asset] if wanted.quote_asset else [],
        "state": [state.value for state in wanted.states],
    }
    conditions += [f"{name} = ANY ({arguments.add(values)})" for name, values in allowed.items() if values]
    return conditions


async def _read(rows: Connection, statement: Statement) -> list[Found]:
    read = []
    for row in map(dict, await rows.fetch(statement.text, *statement.arguments)):
        tier, score = row.pop("tier"), row.pop("score")
        read.append(Found(instrument_from(row), Place(tier, score, row["instrument_id"])))
    return read
