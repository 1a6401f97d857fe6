"""Where instruments live. They belong to nobody: the rpc role reads them, the worker role writes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from libs.margin import Perpetual
from libs.store import outbox
from libs.store.database import Connection
from services.marketdata import events
from services.marketdata.domain import AssetClass, Instrument, InstrumentNotFound, InstrumentState

COLUMNS = """
instrument_id, description, asset_class, base_asset, quote_asset, tick_size, lot_size, minimum_notional,
maker_fee_rate, taker_fee_rate, has_book, state, has_feed, update_time, calendar, time_zone, perpetual
"""

TELL_AGAIN_DAYS = outbox.KEPT_DAYS - 2
"""So old is the newest fact of an instrument at most, and so there always is one for a reader that is new."""


async def find_instrument(rows: Connection, instrument_id: str, *, for_update: bool = False) -> Instrument | None:
    lock = "FOR UPDATE" if for_update else ""
    row = await rows.fetchrow(f"SELECT {COLUMNS} FROM instruments WHERE instrument_id = $1 {lock}", instrument_id)
    return instrument_from(row) if row else None


async def get_instrument(rows: Connection, instrument_id: str) -> Instrument:
    """Raises InstrumentNotFound."""
    if (instrument := await find_instrument(rows, instrument_id)) is None:
        raise InstrumentNotFound(instrument_id)
    return instrument


async def require_instruments(rows: Connection, instrument_ids: Sequence[str]) -> None:
    """Raises InstrumentNotFound, naming the first that does not exist."""
    found = await rows.fetch("SELECT instrument_id FROM instruments WHERE instrument_id = ANY($1)", instrument_ids)
    existing = {row["instrument_id"] for row in found}
    for instrument_id in instrument_ids:
        if instrument_id not in existing:
            raise InstrumentNotFound(instrument_id)


async def put_instrument(rows: Connection, instrument: Instrument) -> Instrument:
    """Stores the instrument and tells it, unless it stands so already; returns it as it now stands."""
    row = await rows.fetchrow(
        """
        INSERT INTO instruments AS kept (
          instrument_id, description, asset_class, base_asset, quote_asset, tick_size, lot_size, minimum_notional,
          maker_fee_rate, taker_fee_rate, has_book, state, has_feed, calendar, time_zone, perpetual, fact_sequence,
          told_sequence)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, 1, 1)
        ON CONFLICT (instrument_id) DO UPDATE SET
          description = $2, asset_class = $3, base_asset = $4, quote_asset = $5, tick_size = $6, lot_size = $7,
          minimum_notional = $8, maker_fee_rate = $9, taker_fee_rate = $10, has_book = $11, state = $12, has_feed = $13,
          calendar = $14, time_zone = $15, perpetual = $16, update_time = now(), fact_sequence = kept.fact_sequence + 1,
          told_sequence = kept.fact_sequence + 1
        WHERE (kept.description, kept.asset_class, kept.base_asset, kept.quote_asset, kept.tick_size, kept.lot_size,
               kept.minimum_notional, kept.maker_fee_rate, kept.taker_fee_rate, kept.has_book, kept.state, kept.has_feed,
               kept.calendar, kept.time_zone, kept.perpetual)
          IS DISTINCT FROM ($2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
        RETURNING fact_sequence, update_time, search_text
        """,
        instrument.instrument_id,
        instrument.description,
        instrument.asset_class.value,
        instrument.base_asset,
        instrument.quote_asset,
        instrument.tick_size,
        instrument.lot_size,
        instrument.minimum_notional,
        instrument.maker_fee_rate,
        instrument.taker_fee_rate,
        instrument.has_book,
        instrument.state.value,
        instrument.has_feed,
        instrument.calendar,
        instrument.time_zone,
        json.dumps(instrument.perpetual.to_json()) if instrument.perpetual else None,
    )
    if row is None:
        return await get_instrument(rows, instrument.instrument_id)
    # Bars that are there follow another calendar once they have been made anew (remaking.py).
    await rows.execute(
        "INSERT INTO series (instrument_id, calendar) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        instrument.instrument_id,
        instrument.calendar,
    )
    # In one order, so that two who put instruments wait for each other once at most. Words that nobody has any more stay,
    # and lead nowhere.
    await rows.execute(
        "INSERT INTO instrument_words SELECT unnest($1::text[]) ON CONFLICT DO NOTHING",
        sorted(set(row["search_text"].split())),
    )
    stored = replace(instrument, update_time=row["update_time"])
    await outbox.add(rows, [events.instrument_changed(stored, row["fact_sequence"])])
    return stored


async def tell_again(rows: Connection, limit: int) -> int:
    """Tells instruments as they stand whose newest fact is no longer kept, or soon will not be; how many."""
    found = await rows.fetch(
        f"""
        WITH untold AS (
          SELECT instrument_id FROM instruments WHERE NOT EXISTS (
            SELECT FROM outbox WHERE key = instrument_id AND sequence = told_sequence
            AND create_time > now() - make_interval(days => $1))
          ORDER BY instrument_id LIMIT $2 FOR UPDATE SKIP LOCKED)
        UPDATE instruments SET fact_sequence = fact_sequence + 1, told_sequence = fact_sequence + 1
        WHERE instrument_id IN (SELECT instrument_id FROM untold)
        RETURNING fact_sequence, {COLUMNS}
        """,
        TELL_AGAIN_DAYS,
        limit,
    )
    facts = []
    for row in map(dict, found):
        sequence = row.pop("fact_sequence")
        facts.append(events.instrument_changed(instrument_from(row), sequence))
    await outbox.add(rows, facts)
    return len(found)


def instrument_from(row: Any) -> Instrument:
    values = dict(row)
    read = {
        "asset_class": AssetClass(values["asset_class"]),
        "state": InstrumentState(values["state"]),
        "perpetual": Perpetual.from_json(json.loads(values["perpetual"])) if values["perpetual"] else None,
    }
    return Instrument(**values | read)
