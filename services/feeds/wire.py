"""Translates between the feeds' API, the ticks on their way, and the domain."""

from collections.abc import Sequence
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from tradeloom.feeds.v1 import events_pb2, feeds_pb2
from tradeloom.marketdata.v1 import marketdata_pb2, perpetuals_pb2

from libs.bus.budget import Budget, BudgetState, Use
from libs.errors import Invalid
from libs.margin import FUNDING_INTERVAL_SECONDS
from libs.mesh.perpetuals import perpetual_from_proto, perpetual_to_proto
from libs.mesh.wire import decimal_from_proto, decimal_to_proto, timestamp
from services.feeds.domain import (
    Aggressor,
    AssetClass,
    Backfill,
    Backfilled,
    BackfillState,
    Bar,
    Book,
    BookLevel,
    ExchangeSource,
    Feed,
    FeedState,
    Instrument,
    Mark,
    Missed,
    Moment,
    RecordedFile,
    ReplaySource,
    Settlement,
    SimulatedSource,
    Source,
    Tick,
    segment_of,
)
from services.feeds.sources.simulated import TRADES_PER_SECOND

REPLAY_VENUE = "FILE"
TRADE_ID_DIGITS_MAX = 18
HISTORY_DAYS_USUAL = 1

_STATES = {
    FeedState.RUNNING: feeds_pb2.FEED_STATE_RUNNING,
    FeedState.STOPPED: feeds_pb2.FEED_STATE_STOPPED,
    FeedState.FINISHED: feeds_pb2.FEED_STATE_FINISHED,
    FeedState.FAILED: feeds_pb2.FEED_STATE_FAILED,
}
_BACKFILL_STATES = {
    BackfillState.RUNNING: feeds_pb2.BACKFILL_STATE_RUNNING,
    BackfillState.FINISHED: feeds_pb2.BACKFILL_STATE_FINISHED,
    BackfillState.FAILED: feeds_pb2.BACKFILL_STATE_FAILED,
}
_ASSET_CLASSES = {
    AssetClass.CRYPTO: marketdata_pb2.ASSET_CLASS_CRYPTO,
    AssetClass.EQUITY: marketdata_pb2.ASSET_CLASS_EQUITY,
    AssetClass.FOREX: marketdata_pb2.ASSET_CLASS_FOREX,
    AssetClass.PERPETUAL: marketdata_pb2.ASSET_CLASS_PERPETUAL,
}
_AGGRESSORS = {
    Aggressor.BUYER: marketdata_pb2.AGGRESSOR_BUYER,
    Aggressor.SELLER: marketdata_pb2.AGGRESSOR_SELLER,
    None: marketdata_pb2.AGGRESSOR_UNSPECIFIED,
}


def source_from_proto(request: feeds_pb2.StartFeedRequest) -> Source:
    """Raises Invalid for an instrument that cannot be a file's, and symbols that no one feed can bring."""
    if request.WhichOneof("source") == "simulated":
        asked = request.simulated
        interval_seconds = asked.funding_interval_seconds or FUNDING_INTERVAL_SECONDS
        return SimulatedSource(asked.seed, asked.trades_per_second or TRADES_PER_SECOND, interval_seconds)
    if request.WhichOneof("source") == "exchange":
        exchange = request.exchange
        days = exchange.history_days if exchange.HasField("history_days") else HISTORY_DAYS_USUAL
        source = ExchangeSource(exchange.venue, tuple(exchange.symbols), exchange.has_book, days)
        mixed = {
            f"exchange.symbols[{number}]": "must be of the same market as the first: perpetual futures take a feed of their own"
            for number, symbol in enumerate(source.symbols)
            if segment_of(source.venue, symbol) != source.segment
        }
        if mixed:
            raise Invalid(mixed)
        return source
    replay = request.replay
    files = tuple(
        RecordedFile(each.file, _replayed_instrument(each.instrument, f"replay.files[{number}].instrument"))
        for number, each in enumerate(replay.files)
    )
    source = ReplaySource(files, replay.speed)
    differing = {
        f"replay.files[{number}].instrument": "is described in another way than in another file"
        for number, each in enumerate(files)
        if each.instrument not in source.instruments
    }
    if differing:
        raise Invalid(differing)
    return source


def _replayed_instrument(asked: marketdata_pb2.Instrument, field: str) -> Instrument:
    """What a file's trades are of: it has no book, and its venue is FILE."""
    venue, symbol = asked.instrument_id.split(":", 1)
    numbers: Any = {
        name: decimal_from_proto(getattr(asked, name))
        for name in ("tick_size", "lot_size", "minimum_notional", "maker_fee_rate", "taker_fee_rate")
    }
    violations = {f"{field}.{name}": "must be above zero" for name in ("tick_size", "lot_size") if numbers[name] <= 0}
    violations |= {
        f"{field}.{name}": "must be from 0 to below 1"
        for name in ("maker_fee_rate", "taker_fee_rate")
        if not 0 <= numbers[name] < 1
    }
    if numbers["minimum_notional"] < 0:
        violations[f"{field}.minimum_notional"] = "must not be below zero"
    perpetual = perpetual_from_proto(asked.perpetual) if asked.HasField("perpetual") else None
    if perpetual is not None:
        wrong = perpetual.violations(asked.quote_asset)
        violations |= {f"{field}.perpetual.{name}": what for name, what in wrong.items()}
        if asked.asset_class != marketdata_pb2.ASSET_CLASS_PERPETUAL:
            violations[f"{field}.perpetual"] = "must be unset: the instrument is no perpetual future"
    if venue != REPLAY_VENUE:
        violations[f"{field}.instrument_id"] = f"must begin with {REPLAY_VENUE}:"
    if violations:
        raise Invalid(violations)
    return Instrument(
        venue=venue,
        symbol=symbol,
        description=asked.description,
        asset_class=next(kind for kind, value in _ASSET_CLASSES.items() if value == asked.asset_class),
        base_asset=asked.base_asset,
        quote_asset=asked.quote_asset,
        has_book=False,
        perpetual=perpetual,
        **numbers,
    )


def feed_to_proto(feed: Feed) -> feeds_pb2.Feed:
    message = feeds_pb2.Feed(
        feed_id=str(feed.feed_id),
        instrument_ids=feed.instrument_ids,
        state=_STATES[feed.state],
        failure=feed.failure,
        tick_count=feed.tick_count,
        market_time=timestamp(feed.market_time),
        create_time=timestamp(feed.create_time),
    )
    match feed.source:
        case SimulatedSource(seed, trades_per_second, funding_interval_seconds):
            message.simulated.seed = seed
            message.simulated.trades_per_second = trades_per_second
            message.simulated.funding_interval_seconds = funding_interval_seconds
        case ReplaySource(files, speed):
            message.replay.speed = speed
            for each in files:
                message.replay.files.add(file=each.file, instrument=instrument_to_proto(each.instrument))
        case ExchangeSource(venue, symbols, has_book, history_days):
            message.exchange.venue = venue
            message.exchange.symbols.extend(symbols)
            message.exchange.has_book = has_book
            message.exchange.history_days = history_days
    return message


def bounds_from_proto(request: feeds_pb2.BackfillRequest) -> Missed:
    """Raises Invalid for bounds between which nothing can be."""
    bounds = request.bounds
    if request.bar_size:
        return _bounds_of_bars(bounds)
    violations = {
        f"bounds.{name}": "must be a whole number, as this venue's ids are"
        for name in ("after_trade_id", "before_trade_id")
        if (text := getattr(bounds, name))
        and not (text.isascii() and text.isdigit() and len(text) <= TRADE_ID_DIGITS_MAX)
    }
    if not bounds.after_trade_id and not bounds.HasField("start_time"):
        violations["bounds.start_time"] = "must be there, or after_trade_id"
    if not bounds.before_trade_id and not bounds.HasField("end_time"):
        violations["bounds.end_time"] = "must be there, or before_trade_id"
    if violations:
        raise Invalid(violations)
    missed = Missed(
        bounds.after_trade_id,
        bounds.before_trade_id,
        bounds.start_time.ToNanoseconds() if bounds.HasField("start_time") else 0,
        bounds.end_time.ToNanoseconds() if bounds.HasField("end_time") else 0,
    )
    if missed.after_trade_id and missed.before_trade_id:
        if int(missed.before_trade_id) <= int(missed.after_trade_id):
            raise Invalid({"bounds.before_trade_id": "must be above after_trade_id"})
    elif missed.end_ns and missed.end_ns <= missed.start_ns:
        raise Invalid({"bounds.end_time": "must be after start_time"})
    return missed


def _bounds_of_bars(bounds: marketdata_pb2.MissedTrades) -> Missed:
    violations = {
        f"bounds.{name}": "must be there: bars are named by time"
        for name in ("start_time", "end_time")
        if not bounds.HasField(name)
    }
    violations |= {
        f"bounds.{name}": "must be empty: bars are named by time"
        for name in ("after_trade_id", "before_trade_id")
        if getattr(bounds, name)
    }
    if violations:
        raise Invalid(violations)
    return Missed("", "", bounds.start_time.ToNanoseconds(), bounds.end_time.ToNanoseconds())


def backfill_order_to_proto(backfill: Backfill) -> feeds_pb2.OrderedBackfill:
    return feeds_pb2.OrderedBackfill(
        backfill_id=str(backfill.backfill_id),
        instrument_id=backfill.instrument_id,
        bounds=missed_to_proto(backfill.bounds),
        state=_BACKFILL_STATES[backfill.state],
        failure=backfill.failure,
        tick_count=backfill.tick_count,
        create_time=timestamp(backfill.create_time),
        bar_size=backfill.bar_size,
        bar_count=backfill.bar_count,
        from_time=time_to_proto(backfill.from_ns) if backfill.from_ns else None,
    )


def bars_to_proto(instrument_id: str, bar_size: str, bars: Sequence[Bar]) -> marketdata_pb2.PutCandlesRequest:
    request = marketdata_pb2.PutCandlesRequest(instrument_id=instrument_id, bar_size=bar_size)
    for open_ns, first, high, low, last, volume, trade_count in bars:
        request.candles.add(
            open_time=time_to_proto(open_ns),
            open=first,
            high=high,
            low=low,
            close=last,
            volume=volume,
            trade_count=trade_count,
        )
    return request


def budget_to_proto(budget: Budget, state: BudgetState) -> feeds_pb2.VenueBudget:
    return feeds_pb2.VenueBudget(
        venue=budget.venue,
        from_address=budget.address,
        capacity=budget.limits.capacity,
        available=state.available,
        units_per_second=budget.limits.units_per_second,
        blocked_seconds=state.blocked_seconds,
        spent_on_cancels=state.spent[Use.CANCEL],
        spent_on_orders=state.spent[Use.ORDER],
        spent_on_data=state.spent[Use.DATA],
    )


def instrument_to_proto(instrument: Instrument) -> marketdata_pb2.Instrument:
    return marketdata_pb2.Instrument(
        instrument_id=instrument.instrument_id,
        venue=instrument.venue,
        symbol=instrument.symbol,
        description=instrument.description,
        asset_class=_ASSET_CLASSES[instrument.asset_class],
        base_asset=instrument.base_asset,
        quote_asset=instrument.quote_asset,
        tick_size=decimal_to_proto(instrument.tick_size),
        lot_size=decimal_to_proto(instrument.lot_size),
        minimum_notional=decimal_to_proto(instrument.minimum_notional),
        maker_fee_rate=decimal_to_proto(instrument.maker_fee_rate),
        taker_fee_rate=decimal_to_proto(instrument.taker_fee_rate),
        has_book=instrument.has_book,
        state=marketdata_pb2.INSTRUMENT_STATE_TRADING
        if instrument.is_trading
        else marketdata_pb2.INSTRUMENT_STATE_HALTED,
        perpetual=perpetual_to_proto(instrument.perpetual),
    )


def announcement(instrument: Instrument) -> tuple[str, str, bytes]:
    """The id, and the kind and payload of the fact that a feed brings this instrument."""
    message = events_pb2.InstrumentAnnounced(instrument=instrument_to_proto(instrument))
    return instrument.instrument_id, message.DESCRIPTOR.full_name, message.SerializeToString()


FUNDING_KIND = events_pb2.FundingAnnounced.DESCRIPTOR.full_name


def funding_ns_of(payload: bytes) -> int:
    """When the settlement was that was announced so."""
    return events_pb2.FundingAnnounced.FromString(payload).funding_rate.funding_time.ToNanoseconds()


def funding_announcement(settled: Settlement) -> tuple[str, str, bytes]:
    """The same of a settlement of funding."""
    funding_rate = perpetuals_pb2.FundingRate(
        instrument_id=settled.instrument_id,
        funding_time=time_to_proto(settled.funding_ns),
        rate=decimal_to_proto(settled.rate),
        mark_price=decimal_to_proto(settled.mark_price),
    )
    message = events_pb2.FundingAnnounced(funding_rate=funding_rate)
    return settled.instrument_id, FUNDING_KIND, message.SerializeToString()


def batch_to_proto(
    instrument_id: str, epoch: int, first_sequence: int, ticks: Sequence[Tick], last: Book | Moment | Mark | None
) -> marketdata_pb2.TickBatch:
    """A batch without its cursors."""
    batch = marketdata_pb2.TickBatch(instrument_id=instrument_id, epoch=epoch, first_sequence=first_sequence)
    _add_ticks(batch, ticks)
    match last:
        case Book(time_ns, bids, asks, tells_time, mark):
            batch.book.time.CopyFrom(time_to_proto(time_ns))
            _add_levels(batch.book.bids, bids)
            _add_levels(batch.book.asks, asks)
            if tells_time:
                batch.market_time.CopyFrom(batch.book.time)
            if mark is not None:
                batch.mark.CopyFrom(mark_to_proto(mark))
        case Moment(time_ns):
            batch.market_time.CopyFrom(time_to_proto(time_ns))
        case Mark():
            batch.mark.CopyFrom(mark_to_proto(last))
    return batch


def backfill_to_proto(
    instrument_id: str, epoch: int, first_sequence: int, backfilled: Backfilled
) -> marketdata_pb2.TickBatch:
    """A batch of ticks that had been missed, without its cursors."""
    batch = marketdata_pb2.TickBatch(
        instrument_id=instrument_id, epoch=epoch, first_sequence=first_sequence, backfill=True
    )
    _add_ticks(batch, backfilled.ticks)
    if backfilled.filled is not None:
        batch.filled.CopyFrom(missed_to_proto(backfilled.filled))
    return batch


def missed_to_proto(missed: Missed) -> marketdata_pb2.MissedTrades:
    return marketdata_pb2.MissedTrades(
        after_trade_id=missed.after_trade_id,
        before_trade_id=missed.before_trade_id,
        start_time=time_to_proto(missed.start_ns) if missed.start_ns else None,
        end_time=time_to_proto(missed.end_ns) if missed.end_ns else None,
    )


def _add_ticks(batch: marketdata_pb2.TickBatch, ticks: Sequence[Tick]) -> None:
    for tick in ticks:
        batch.ticks.add(
            time=time_to_proto(tick.time_ns),
            price=tick.price,
            quantity=tick.quantity,
            aggressor=_AGGRESSORS[tick.aggressor],
            trade_id=tick.trade_id,
        )


def _add_levels(side, levels: Sequence[BookLevel]) -> None:  # noqa: ANN001 (a repeated field has no public type)
    for price, quantity in levels:
        side.add(price=price, quantity=quantity)


def mark_to_proto(mark: Mark) -> perpetuals_pb2.Mark:
    return perpetuals_pb2.Mark(
        time=time_to_proto(mark.time_ns),
        mark_price=mark.mark_price,
        index_price=mark.index_price,
        predicted_funding_rate=mark.predicted_funding_rate,
        next_funding_time=time_to_proto(mark.next_funding_ns),
    )


def time_to_proto(time_ns: int) -> Timestamp:
    seconds, nanos = divmod(time_ns, 1_000_000_000)
    return Timestamp(seconds=seconds, nanos=nanos)


def update_quote(quote: marketdata_pb2.Quote, batch: marketdata_pb2.TickBatch, receive_ns: int) -> None:
    """Makes the quote what it is after a batch. Of ticks that come late it takes the cursor alone."""
    quote.instrument_id, quote.cursor = batch.instrument_id, batch.cursor
    if batch.backfill:
        return
    if batch.ticks or batch.HasField("book") or batch.HasField("market_time"):
        # A mark makes no price younger.
        quote.receive_time.CopyFrom(time_to_proto(receive_ns))
    if batch.ticks:
        last = batch.ticks[-1]
        quote.last_price, quote.last_quantity = last.price, last.quantity
        quote.time.CopyFrom(last.time)
    if batch.HasField("book"):
        bid = batch.book.bids[0] if batch.book.bids else marketdata_pb2.BookLevel()
        ask = batch.book.asks[0] if batch.book.asks else marketdata_pb2.BookLevel()
        quote.bid_price, quote.bid_quantity = bid.price, bid.quantity
        quote.ask_price, quote.ask_quantity = ask.price, ask.quantity
        quote.time.CopyFrom(batch.book.time)
    if batch.HasField("mark"):
        quote.mark.CopyFrom(batch.mark)


def time_from_batch(batch: marketdata_pb2.TickBatch) -> int:
    """The market time of the last event in nanoseconds, of a batch that is no backfill and holds more than a mark."""
    if batch.HasField("market_time"):
        time = batch.market_time
    else:
        time = batch.book.time if batch.HasField("book") else batch.ticks[-1].time
    return time.seconds * 1_000_000_000 + time.nanos
