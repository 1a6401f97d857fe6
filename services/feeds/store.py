"""Where feeds live, and how far their instruments' streams have come."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from operator import itemgetter
from typing import Any
from uuid import UUID

from libs.margin import Perpetual
from libs.store import outbox
from libs.store.database import Connection
from libs.store.outbox import Fact
from services.feeds.domain import (
    AssetClass,
    Backfill,
    BackfillState,
    ExchangeSource,
    Feed,
    FeedNotFound,
    FeedState,
    Instrument,
    Missed,
    Place,
    RecordedFile,
    ReplaySource,
    SimulatedSource,
    Source,
)

_FEED = "feed_id, source, instrument_ids, state, failure, tick_count, market_time, create_time"
_PLACE = "instrument_id, epoch, position_epoch, sequence, position, offset_ns, market_time_ns, trade_id, redis_run"
_BACKFILL = """
backfill_id, instrument_id, bounds, state, failure, reached_trade_id, reached_ns, tick_count, create_time,
bar_size, bar_count, from_ns, due_ns
"""


@dataclass(frozen=True, slots=True)
class FeedStore:
    """One transaction's view."""

    rows: Connection

    async def add(self, feed: Feed) -> None:
        await self.rows.execute(
            "INSERT INTO feed_subscriptions (feed_id, source, instrument_ids, state, create_time) VALUES ($1, $2, $3, $4, $5)",
            feed.feed_id,
            _source_to_json(feed.source),
            list(feed.instrument_ids),
            feed.state.value,
            feed.create_time,
        )

    async def bring(self, feed_id: UUID, instrument_ids: Sequence[str], position: int | None) -> str | None:
        """Has a feed bring instruments; the instrument that another brings, if one does.

        The sequence goes on counting. With a position of its own the epoch rises, so that nothing the stream holds is taken
        for this feed's; without one it goes on where the last feed of the same kind ended.
        """
        await self.rows.execute(
            """
            INSERT INTO instrument_streams (instrument_id, epoch, position_epoch, sequence, position, offset_ns, fact_sequence)
            SELECT instrument_id, 0, 0, 0, 0, 0, 0 FROM unnest($1::text[]) AS instrument_id ORDER BY 1
            ON CONFLICT (instrument_id) DO NOTHING
            """,
            list(instrument_ids),
        )
        locked = await self.rows.fetch(
            """
            SELECT instrument_id, feed_id FROM instrument_streams WHERE instrument_id = ANY ($1)
            ORDER BY instrument_id FOR UPDATE
            """,
            list(instrument_ids),
        )
        for row in locked:
            if row["feed_id"] is not None:
                return row["instrument_id"]
        await self.rows.execute(
            """
            UPDATE instrument_streams
            SET feed_id = $1, epoch = CASE WHEN $3::bigint IS NULL THEN epoch ELSE epoch + 1 END,
              position_epoch = CASE WHEN $3 IS NULL THEN position_epoch ELSE epoch + 1 END,
              position = coalesce($3, position), offset_ns = 0
            WHERE instrument_id = ANY ($2)
            """,
            feed_id,
            list(instrument_ids),
            position,
        )
        return None

    async def add_instruments(self, feed_id: UUID, instrument_ids: Sequence[str]) -> None:
        """Has a feed name more instruments, which it brings."""
        await self.rows.execute(
            """
            UPDATE feed_subscriptions SET instrument_ids = (
              SELECT array_agg(DISTINCT each ORDER BY each) FROM unnest(instrument_ids || $2::text[]) AS each)
            WHERE feed_id = $1
            """,
            feed_id,
            list(instrument_ids),
        )

    async def market_time_ns(self, instrument_id: str) -> int:
        """How far an instrument has come, as it was last noted; 0 if nothing was ever told of it."""
        found = await self.rows.fetchval(
            "SELECT market_time_ns FROM instrument_streams WHERE instrument_id = $1", instrument_id
        )
        return found or 0

    async def find(self, feed_id: UUID) -> Feed | None:
        row = await self.rows.fetchrow(f"SELECT {_FEED} FROM feed_subscriptions WHERE feed_id = $1", feed_id)
        return row and _feed_from(row)

    async def locked(self, feed_id: UUID) -> Feed:
        """The feed, which nobody else changes until the commit. Raises FeedNotFound."""
        row = await self.rows.fetchrow(f"SELECT {_FEED} FROM feed_subscriptions WHERE feed_id = $1 FOR UPDATE", feed_id)
        if row is None:
            raise FeedNotFound("no feed has this id", feed_id=feed_id)
        return _feed_from(row)

    async def page(self, after_feed_id: UUID | None, size: int) -> list[Feed]:
        """Feeds in the order of their creation, which is that of their ids."""
        rows = await self.rows.fetch(
            f"SELECT {_FEED} FROM feed_subscriptions WHERE feed_id > $1 ORDER BY feed_id LIMIT $2",
            after_feed_id or UUID(int=0),
            size,
        )
        return [_feed_from(row) for row in rows]

    async def end(self, feed_id: UUID, state: FeedState, failure: str = "") -> None:
        """Ends a running feed and frees its instruments; does nothing to one that has ended."""
        await self.rows.execute(
            "UPDATE feed_subscriptions SET state = $2, failure = $3 WHERE feed_id = $1 AND state = 'running'",
            feed_id,
            state.value,
            failure,
        )
        await self.rows.execute("UPDATE instrument_streams SET feed_id = NULL WHERE feed_id = $1", feed_id)

    async def left_by_replay(self, feed_id: UUID) -> list[str]:
        """The instruments of a replay that has ended, which no feed brings until the commit."""
        found = await self.rows.fetch(
            """
            SELECT instrument_id FROM instrument_streams WHERE feed_id IS NULL AND instrument_id = ANY (
              SELECT unnest(instrument_ids) FROM feed_subscriptions WHERE feed_id = $1 AND source ? 'replay')
            ORDER BY instrument_id FOR UPDATE
            """,
            feed_id,
        )
        return [row["instrument_id"] for row in found]

    async def count_running(self) -> int:
        """How many run; nobody else counts until the commit, so that of two that start at once one sees the other."""
        await self.rows.execute("SELECT pg_advisory_xact_lock(hashtext('running feeds'))")
        return await self.rows.fetchval("SELECT count(*) FROM feed_subscriptions WHERE state = 'running'") or 0

    async def count_brought(self) -> int:
        """The instruments that are brought by running feeds."""
        return await self.rows.fetchval("SELECT count(*) FROM instrument_streams WHERE feed_id IS NOT NULL") or 0

    async def streams(self) -> tuple[list[str], list[str]]:
        """The instruments that are brought, and those that once were."""
        rows = await self.rows.fetch("SELECT instrument_id, feed_id FROM instrument_streams ORDER BY instrument_id")
        brought = [row["instrument_id"] for row in rows if row["feed_id"] is not None]
        return brought, [row["instrument_id"] for row in rows if row["feed_id"] is None]

    async def running(self) -> set[UUID]:
        rows = await self.rows.fetch("SELECT feed_id FROM feed_subscriptions WHERE state = 'running'")
        return {row["feed_id"] for row in rows}

    async def grant_epochs(self, feed_id: UUID, appended_epochs: Mapping[str, int]) -> list[Place]:
        """Gives each instrument an epoch above any that was granted or, as its stream tells, appended under."""
        rows = await self.rows.fetch(
            f"""
            UPDATE instrument_streams SET epoch = greatest(epoch, appended.last_epoch) + 1
            FROM unnest($2::text[], $3::bigint[]) AS appended (appended_id, last_epoch)
            WHERE feed_id = $1 AND instrument_id = appended_id RETURNING {_PLACE}
            """,
            feed_id,
            list(appended_epochs),
            list(appended_epochs.values()),
        )
        return sorted((Place(**row) for row in rows), key=lambda place: place.instrument_id)

    async def note(
        self, feed_id: UUID, places: Sequence[Place], tick_count: int, market_time: datetime | None
    ) -> set[str]:
        """Notes how far a feed has come; of which instruments, as it does not bring those any more that it was stopped for."""
        await self.rows.execute(
            "UPDATE feed_subscriptions SET tick_count = $2, market_time = coalesce($3, market_time) WHERE feed_id = $1",
            feed_id,
            tick_count,
            market_time,
        )
        found = await self.rows.fetch(
            """
            UPDATE instrument_streams AS held SET position_epoch = noted.position_epoch, sequence = noted.sequence,
              position = noted.position, offset_ns = noted.offset_ns, market_time_ns = noted.market_time_ns,
              trade_id = noted.trade_id, redis_run = noted.redis_run
            FROM unnest($2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::text[], $9::text[])
              AS noted (instrument_id, position_epoch, sequence, position, offset_ns, market_time_ns, trade_id, redis_run)
            WHERE held.instrument_id = noted.instrument_id AND held.feed_id = $1 AND held.epoch = noted.position_epoch
            RETURNING held.instrument_id
            """,
            feed_id,
            [place.instrument_id for place in places],
            [place.position_epoch for place in places],
            [place.sequence for place in places],
            [place.position for place in places],
            [place.offset_ns for place in places],
            [place.market_time_ns for place in places],
            [place.trade_id for place in places],
            [place.redis_run for place in places],
        )
        return {row["instrument_id"] for row in found}

    async def announce(self, announcements: Iterable[tuple[str, str, bytes]]) -> None:
        """Tells the others of instruments: (instrument_id, kind, payload) of each, those of one in their order."""
        for instrument_id, kind, payload in sorted(announcements, key=itemgetter(0)):
            sequence: Any = await self.rows.fetchval(
                """
                UPDATE instrument_streams SET fact_sequence = fact_sequence + 1
                WHERE instrument_id = $1 RETURNING fact_sequence
                """,
                instrument_id,
            )
            fact = Fact(key=instrument_id, sequence=sequence, user_id=None, kind=kind, payload=payload)
            await outbox.add(self.rows, [fact])

    async def newest_told(self, instrument_id: str, kind: str) -> bytes | None:
        """The payload of the newest fact of a kind that was told of an instrument, as long as it is kept."""
        return await self.rows.fetchval(
            "SELECT payload FROM outbox WHERE key = $1 AND kind = $2 ORDER BY sequence DESC LIMIT 1",
            instrument_id,
            kind,
        )

    async def brings(self, instrument_id: str) -> Feed | None:
        """The running feed that brings an instrument."""
        row = await self.rows.fetchrow(
            f"""
            SELECT {_FEED} FROM feed_subscriptions
            WHERE feed_id = (SELECT feed_id FROM instrument_streams WHERE instrument_id = $1)
            """,
            instrument_id,
        )
        return row and _feed_from(row)

    async def add_backfill(self, backfill: Backfill) -> None:
        await self.rows.execute(
            f"INSERT INTO backfills ({_BACKFILL}) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
            backfill.backfill_id,
            backfill.instrument_id,
            json.dumps(backfill.bounds._asdict()),
            backfill.state.value,
            backfill.failure,
            backfill.reached_trade_id,
            backfill.reached_ns,
            backfill.tick_count,
            backfill.create_time,
            backfill.bar_size,
            backfill.bar_count,
            backfill.from_ns,
            backfill.due_ns,
        )

    async def add_history(self, backfill: Backfill) -> None:
        """Adds an order of bars; one that begins within another that has not ended moves the other's end instead."""
        prolonged = await self.rows.fetchval(
            """
            UPDATE backfills SET bounds = jsonb_set(bounds, '{end_ns}', to_jsonb(greatest((bounds->>'end_ns')::bigint, $4)))
            WHERE backfill_id = (
              SELECT backfill_id FROM backfills WHERE instrument_id = $1 AND state = 'running' AND bar_size = $2
              AND $3 BETWEEN (bounds->>'start_ns')::bigint AND (bounds->>'end_ns')::bigint
              ORDER BY backfill_id LIMIT 1 FOR UPDATE)
            RETURNING backfill_id
            """,
            backfill.instrument_id,
            backfill.bar_size,
            backfill.bounds.start_ns,
            backfill.bounds.end_ns,
        )
        if prolonged is None:
            await self.add_backfill(backfill)

    async def count_running_backfills(self, instrument_id: str) -> int:
        found = await self.rows.fetchval(
            "SELECT count(*) FROM backfills WHERE instrument_id = $1 AND state = 'running'", instrument_id
        )
        return found or 0

    async def oldest_backfill(self, instrument_ids: Sequence[str], now_ns: int | None) -> Backfill | None:
        """The first that is to be done for any of these instruments: trades, else bars that are due, none without a time."""
        row = await self.rows.fetchrow(
            f"""
            SELECT {_BACKFILL} FROM backfills WHERE instrument_id = ANY ($1) AND state = 'running'
            AND (bar_size = '' OR due_ns <= $2)
            ORDER BY bar_size <> '', backfill_id LIMIT 1
            """,
            list(instrument_ids),
            now_ns,
        )
        return row and _backfill_from(row)

    async def note_backfill(self, backfill: Backfill) -> None:
        """Notes how far it has come. One of which the end was moved meanwhile has not ended."""
        await self.rows.execute(
            """
            UPDATE backfills SET
              state = CASE WHEN $2 = 'finished' AND (bounds->>'end_ns')::bigint > $10 THEN state ELSE $2 END, failure = $3,
              reached_trade_id = $4, reached_ns = $5, tick_count = $6, bar_count = $7, from_ns = $8, due_ns = $9
            WHERE backfill_id = $1
            """,
            backfill.backfill_id,
            backfill.state.value,
            backfill.failure,
            backfill.reached_trade_id,
            backfill.reached_ns,
            backfill.tick_count,
            backfill.bar_count,
            backfill.from_ns,
            backfill.due_ns,
            backfill.bounds.end_ns,
        )

    async def backfills(self, instrument_id: str, after_backfill_id: UUID | None, size: int) -> list[Backfill]:
        """In the order in which they were ordered, of one instrument or, with an empty id, of all."""
        rows = await self.rows.fetch(
            f"""
            SELECT {_BACKFILL} FROM backfills WHERE backfill_id > $1 AND ($2 = '' OR instrument_id = $2)
            ORDER BY backfill_id LIMIT $3
            """,
            after_backfill_id or UUID(int=0),
            instrument_id,
            size,
        )
        return [_backfill_from(row) for row in rows]


def _backfill_from(row: Any) -> Backfill:
    return Backfill(**{**row, "bounds": Missed(**json.loads(row["bounds"])), "state": BackfillState(row["state"])})


def _feed_from(row: Any) -> Feed:
    return Feed(
        **{
            **row,
            "source": _source_from_json(row["source"]),
            "instrument_ids": tuple(row["instrument_ids"]),
            "state": FeedState(row["state"]),
        }
    )


def _source_to_json(source: Source) -> str:
    def plain(value: object) -> str:
        return value.value if isinstance(value, AssetClass) else str(value)

    kinds = {SimulatedSource: "simulated", ReplaySource: "replay", ExchangeSource: "exchange"}
    return json.dumps({kinds[type(source)]: asdict(source)}, default=plain)


def _source_from_json(text: str) -> Source:
    stored = json.loads(text)
    if "simulated" in stored:
        return SimulatedSource(**stored["simulated"])
    if "exchange" in stored:
        exchange = stored["exchange"]
        return ExchangeSource(**{**exchange, "symbols": tuple(exchange["symbols"])})
    replay = stored["replay"]
    files = tuple(RecordedFile(each["file"], _instrument_from_json(each["instrument"])) for each in replay["files"])
    return ReplaySource(files, replay["speed"])


def _instrument_from_json(stored: dict[str, Any]) -> Instrument:
    numbers = ("tick_size", "lot_size", "minimum_notional", "maker_fee_rate", "taker_fee_rate")
    exact = {name: Decimal(stored[name]) for name in numbers}
    perpetual = Perpetual.from_json(stored["perpetual"]) if stored.get("perpetual") else None
    return Instrument(**{**stored, **exact, "asset_class": AssetClass(stored["asset_class"]), "perpetual": perpetual})
