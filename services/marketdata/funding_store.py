"""Where settlements of funding live: each once, whoever brings it how often."""

from datetime import datetime

from libs.store import outbox
from libs.store.database import Connection
from services.marketdata import events
from services.marketdata.domain import FundingRate


async def settle(rows: Connection, settled: FundingRate) -> bool:
    """Stores a settlement and tells it; False if it is there already, or nobody knows the instrument."""
    sequence = await rows.fetchval(
        """
        WITH settled AS (
          INSERT INTO funding_rates (instrument_id, funding_time, rate, mark_price)
          SELECT instrument_id, $2, $3, $4 FROM instruments WHERE instrument_id = $1
          ON CONFLICT DO NOTHING RETURNING instrument_id)
        UPDATE instruments SET fact_sequence = fact_sequence + 1
        WHERE instrument_id IN (SELECT instrument_id FROM settled) RETURNING fact_sequence
        """,
        settled.instrument_id,
        settled.funding_time,
        settled.rate,
        settled.mark_price,
    )
    if sequence is None:
        return False
    await outbox.add(rows, [events.funding_settled(settled, sequence)])
    return True


async def read_rates(
    rows: Connection,
    instrument_id: str,
    *,
    start: datetime | None,
    before: datetime | None,
    backwards: bool,
    limit: int,
) -> list[FundingRate]:
    """At most limit of them within these times, oldest first: the first of them or, backwards, the last."""
    order = "DESC" if backwards else "ASC"
    found = await rows.fetch(
        f"""
        SELECT * FROM funding_rates WHERE instrument_id = $1
        AND funding_time >= coalesce($2::timestamptz, '-infinity') AND funding_time < coalesce($3::timestamptz, 'infinity')
        ORDER BY funding_time {order} LIMIT $4
        """,
        instrument_id,
        start,
        before,
        limit,
    )
    rates = [FundingRate(**row) for row in found]
    return rates[::-1] if backwards else rates
