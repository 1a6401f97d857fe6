"""Translates between the marketdata API and what the service works with."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp
from tradeloom.marketdata.v1 import marketdata_pb2

from libs.mesh.wire import decimal_from_proto, decimal_to_proto, timestamp
from services.marketdata.domain import (
    EPOCH,
    AssetClass,
    Candle,
    Instrument,
    InstrumentFilter,
    InstrumentState,
    MarketState,
    Session,
)

ASSET_CLASSES = {
    AssetClass.CRYPTO: marketdata_pb2.ASSET_CLASS_CRYPTO,
    AssetClass.EQUITY: marketdata_pb2.ASSET_CLASS_EQUITY,
    AssetClass.FOREX: marketdata_pb2.ASSET_CLASS_FOREX,
    AssetClass.PERPETUAL: marketdata_pb2.ASSET_CLASS_PERPETUAL,
}
STATES = {
    InstrumentState.TRADING: marketdata_pb2.INSTRUMENT_STATE_TRADING,
    InstrumentState.HALTED: marketdata_pb2.INSTRUMENT_STATE_HALTED,
}
ASSET_CLASSES_BACK = {value: key for key, value in ASSET_CLASSES.items()}
STATES_BACK = {value: key for key, value in STATES.items()}


def instrument_to_proto(instrument: Instrument) -> marketdata_pb2.Instrument:
    return marketdata_pb2.Instrument(
        instrument_id=instrument.instrument_id,
        venue=instrument.venue,
        symbol=instrument.symbol,
        description=instrument.description,
        asset_class=ASSET_CLASSES[instrument.asset_class],
        base_asset=instrument.base_asset,
        quote_asset=instrument.quote_asset,
        tick_size=decimal_to_proto(instrument.tick_size),
        lot_size=decimal_to_proto(instrument.lot_size),
        minimum_notional=decimal_to_proto(instrument.minimum_notional),
        maker_fee_rate=decimal_to_proto(instrument.maker_fee_rate),
        taker_fee_rate=decimal_to_proto(instrument.taker_fee_rate),
        has_book=instrument.has_book,
        state=STATES[instrument.state],
        update_time=timestamp(instrument.update_time),
        calendar=instrument.calendar,
        time_zone=instrument.time_zone,
    )


def put_instrument_from_proto(message: marketdata_pb2.Instrument) -> Instrument:
    """One put by hand has only history, so it cannot be traded."""
    return instrument_from_proto(message, state=InstrumentState.HALTED, has_feed=False)


def announced_instrument_from_proto(message: marketdata_pb2.Instrument) -> Instrument:
    """One that a feed brings can be traded unless the feed says that it is halted."""
    halted = message.state == marketdata_pb2.INSTRUMENT_STATE_HALTED
    return instrument_from_proto(
        message, state=InstrumentState.HALTED if halted else InstrumentState.TRADING, has_feed=True
    )


def instrument_from_proto(message: marketdata_pb2.Instrument, *, state: InstrumentState, has_feed: bool) -> Instrument:
    return Instrument(
        instrument_id=message.instrument_id,
        description=message.description,
        asset_class=ASSET_CLASSES_BACK[message.asset_class],
        base_asset=message.base_asset,
        quote_asset=message.quote_asset,
        tick_size=decimal_from_proto(message.tick_size),
        lot_size=decimal_from_proto(message.lot_size),
        minimum_notional=decimal_from_proto(message.minimum_notional),
        maker_fee_rate=decimal_from_proto(message.maker_fee_rate),
        taker_fee_rate=decimal_from_proto(message.taker_fee_rate),
        has_book=message.has_book,
        state=state,
        has_feed=has_feed,
        calendar=message.calendar,
    )


def session_to_proto(session: Session) -> marketdata_pb2.Session:
    return marketdata_pb2.Session(
        date=session.date.isoformat(),
        open_time=timestamp(session.open),
        close_time=timestamp(session.close),
        breaks=[
            marketdata_pb2.SessionBreak(start_time=timestamp(start), end_time=timestamp(end))
            for start, end in session.breaks
        ],
        closes_early=session.closes_early,
    )


def market_state_to_proto(state: MarketState) -> marketdata_pb2.MarketState:
    return marketdata_pb2.MarketState(
        is_open=state.is_open,
        next_open_time=timestamp(state.next_open),
        next_close_time=timestamp(state.next_close),
    )


def filter_from_proto(request: marketdata_pb2.SearchInstrumentsRequest) -> InstrumentFilter:
    return InstrumentFilter(
        venue=request.venue,
        asset_classes=frozenset(map(ASSET_CLASSES_BACK.__getitem__, request.asset_classes)),
        base_asset=request.base_asset,
        quote_asset=request.quote_asset,
        states=frozenset(map(STATES_BACK.__getitem__, request.states)),
    )


def candle_to_proto(candle: Candle) -> marketdata_pb2.Candle:
    return marketdata_pb2.Candle(
        open_time=whole_seconds(candle.open_time),
        open=candle.open,
        high=candle.high,
        low=candle.low,
        close=candle.close,
        volume=candle.volume,
        trade_count=candle.trade_count,
        closed=candle.closed,
        revision=candle.revision,
    )


def whole_seconds(time: datetime) -> Timestamp:
    """Bars open at whole seconds; this is a third of the cost of the general way, thousands of times a page."""
    elapsed = time - EPOCH
    return Timestamp(seconds=elapsed.days * 86_400 + elapsed.seconds)
