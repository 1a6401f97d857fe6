"""Translates between the marketdata API and what the service works with."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import date, datetime

from tradeloom.marketdata.v1 import marketdata_pb2, perpetuals_pb2

from libs.bar_sizes import EPOCH
from libs.errors import Invalid
from libs.ids import uuid7
from libs.mesh.perpetuals import perpetual_from_proto, perpetual_to_proto
from libs.mesh.wire import decimal_from_proto, decimal_to_proto, time_from_proto, timestamp
from libs.money import plain
from libs.store.requests import RequestKey
from services.marketdata.domain import (
    Adjustment,
    AssetClass,
    Candle,
    CashDividend,
    CorporateAction,
    Deletion,
    Export,
    ExportFormat,
    FundingRate,
    Gap,
    GapKind,
    Import,
    ImportRefusal,
    ImportState,
    Instrument,
    InstrumentFilter,
    InstrumentState,
    MarketState,
    Session,
    Split,
    bar_size,
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
GAP_KINDS = {
    GapKind.MISSED: marketdata_pb2.GAP_KIND_MISSED,
    GapKind.LOST: marketdata_pb2.GAP_KIND_LOST,
}
ADJUSTMENTS_BACK = {
    marketdata_pb2.ADJUSTMENT_UNSPECIFIED: Adjustment.RAW,
    marketdata_pb2.ADJUSTMENT_RAW: Adjustment.RAW,
    marketdata_pb2.ADJUSTMENT_SPLITS: Adjustment.SPLITS,
    marketdata_pb2.ADJUSTMENT_SPLITS_AND_DIVIDENDS: Adjustment.SPLITS_AND_DIVIDENDS,
}
IMPORT_STATES = {
    ImportState.RECEIVING: marketdata_pb2.IMPORT_STATE_RECEIVING,
    ImportState.CHECKING: marketdata_pb2.IMPORT_STATE_CHECKING,
    ImportState.STORING: marketdata_pb2.IMPORT_STATE_STORING,
    ImportState.DONE: marketdata_pb2.IMPORT_STATE_DONE,
    ImportState.REFUSED: marketdata_pb2.IMPORT_STATE_REFUSED,
}
EXPORT_FORMATS = {
    marketdata_pb2.EXPORT_FORMAT_CSV: ExportFormat.CSV,
    marketdata_pb2.EXPORT_FORMAT_CSV_GZIP: ExportFormat.CSV_GZIP,
    marketdata_pb2.EXPORT_FORMAT_PARQUET: ExportFormat.PARQUET,
    marketdata_pb2.EXPORT_FORMAT_ARROW: ExportFormat.ARROW,
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
        perpetual=perpetual_to_proto(instrument.perpetual),
    )


def put_instrument_from_proto(message: marketdata_pb2.Instrument) -> Instrument:
    """One put by hand has only history, so it cannot be traded."""
    return _with_tiers_put(message, InstrumentState.HALTED, has_feed=False, tiers_put=tells_tiers(message))


def announced_instrument_from_proto(message: marketdata_pb2.Instrument) -> Instrument:
    """One that a feed brings can be traded unless the feed says that it is halted."""
    halted = message.state == marketdata_pb2.INSTRUMENT_STATE_HALTED
    state = InstrumentState.HALTED if halted else InstrumentState.TRADING
    return _with_tiers_put(message, state, has_feed=True, tiers_put=False)


def tells_tiers(message: marketdata_pb2.Instrument) -> bool:
    """Whether it says what positions in a perpetual future must be backed by."""
    return bool(message.perpetual.margin_tiers)


def _with_tiers_put(
    message: marketdata_pb2.Instrument, state: InstrumentState, *, has_feed: bool, tiers_put: bool
) -> Instrument:
    """Who put tiers is for the service to say, whatever the message does."""
    instrument = instrument_from_proto(message, state=state, has_feed=has_feed)
    if instrument.perpetual is None:
        return instrument
    return replace(instrument, perpetual=replace(instrument.perpetual, tiers_put=tiers_put))


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
        perpetual=perpetual_from_proto(message.perpetual) if message.HasField("perpetual") else None,
    )


def funding_rate_to_proto(settled: FundingRate) -> perpetuals_pb2.FundingRate:
    return perpetuals_pb2.FundingRate(
        instrument_id=settled.instrument_id,
        funding_time=timestamp(settled.funding_time),
        rate=decimal_to_proto(settled.rate),
        mark_price=decimal_to_proto(settled.mark_price),
    )


def funding_rate_from_proto(message: perpetuals_pb2.FundingRate) -> FundingRate:
    return FundingRate(
        instrument_id=message.instrument_id,
        funding_time=time_from_proto(message.funding_time),
        rate=decimal_from_proto(message.rate),
        mark_price=decimal_from_proto(message.mark_price),
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


def market_state_to_proto(state: MarketState | None) -> marketdata_pb2.MarketState | None:
    if state is None:
        return None
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


def missed_from_proto(instrument_id: str, message: marketdata_pb2.MissedTrades) -> Gap:
    return Gap(
        gap_id=uuid7(),
        instrument_id=instrument_id,
        kind=GapKind.MISSED,
        after_trade_id=message.after_trade_id,
        before_trade_id=message.before_trade_id,
        start_time=time_from_proto(message.start_time) if message.HasField("start_time") else None,
        end_time=time_from_proto(message.end_time) if message.HasField("end_time") else None,
    )


def gap_to_proto(gap: Gap) -> marketdata_pb2.Gap:
    return marketdata_pb2.Gap(
        gap_id=str(gap.gap_id),
        instrument_id=gap.instrument_id,
        kind=GAP_KINDS[gap.kind],
        after_trade_id=gap.after_trade_id,
        before_trade_id=gap.before_trade_id,
        start_time=timestamp(gap.start_time),
        end_time=timestamp(gap.end_time),
        after_sequence=gap.after_sequence or 0,
        before_sequence=gap.before_sequence or 0,
        found_time=timestamp(gap.found_time),
        filled_time=timestamp(gap.filled_time),
    )


def action_from_proto(message: marketdata_pb2.CorporateAction, now: datetime) -> CorporateAction:
    """A new one, known from now on if nothing else is said. Raises Invalid."""
    try:
        ex_date = date.fromisoformat(message.ex_date)
    except ValueError:
        raise Invalid({"action.ex_date": "is no date such as 2020-08-31"}) from None
    if message.WhichOneof("what") == "split":
        what = Split(
            new_shares=decimal_from_proto(message.split.new_shares),
            old_shares=decimal_from_proto(message.split.old_shares),
        )
    else:
        dividend = message.cash_dividend
        what = CashDividend(amount=decimal_from_proto(dividend.amount), currency=dividend.currency)
    return CorporateAction(
        action_id=uuid7(),
        instrument_id=message.instrument_id,
        ex_date=ex_date,
        what=what,
        known_time=time_from_proto(message.known_time) if message.HasField("known_time") else now,
    )


def action_to_proto(action: CorporateAction) -> marketdata_pb2.CorporateAction:
    message = marketdata_pb2.CorporateAction(
        action_id=str(action.action_id),
        instrument_id=action.instrument_id,
        ex_date=action.ex_date.isoformat(),
        known_time=timestamp(action.known_time),
        withdrawn_time=timestamp(action.withdrawn_time),
    )
    match action.what:
        case Split(new_shares=new_shares, old_shares=old_shares):
            message.split.new_shares.value = plain(new_shares)
            message.split.old_shares.value = plain(old_shares)
        case CashDividend(amount=amount, currency=currency):
            message.cash_dividend.amount.value = plain(amount)
            message.cash_dividend.currency = currency
    return message


def add_candles(
    response: marketdata_pb2.GetCandlesResponse | marketdata_pb2.StreamCandlesResponse, candles: Iterable[Candle]
) -> None:
    """Field by field, thousands of times a page: to make each message and have it copied takes three times as long."""
    add = response.candles.add
    for open_time, first, high, low, last, volume, trade_count, revision, closed, end_time in candles:
        elapsed = open_time - EPOCH  # bars open at whole seconds
        candle = add()
        candle.open_time.seconds = elapsed.days * 86_400 + elapsed.seconds
        candle.open = first
        candle.high = high
        candle.low = low
        candle.close = last
        candle.volume = volume
        candle.trade_count = trade_count
        candle.closed = closed
        candle.revision = revision
        if end_time is not None:
            candle.end_time.FromDatetime(end_time)


def import_to_proto(found: Import) -> marketdata_pb2.CandleImport:
    return marketdata_pb2.CandleImport(
        request_id=found.request_id,
        instrument_id=found.instrument_id,
        bar_size=found.bar_size,
        state=IMPORT_STATES[found.state],
        size_bytes=found.size_bytes,
        held_bytes=found.held_bytes,
        layout=found.layout,
        checked_count=found.checked_count,
        read_count=found.read_count,
        stored_count=found.stored_count,
        inserted_count=found.inserted_count,
        changed_count=found.changed_count,
        unchanged_count=found.stored_count - found.inserted_count - found.changed_count,
        start_time=timestamp(found.start_time),
        end_time=timestamp(found.end_time),
        refusal=import_refusal_to_proto(found.refusal) if found.refusal else None,
        create_time=timestamp(found.create_time),
    )


def import_refusal_to_proto(refusal: ImportRefusal) -> marketdata_pb2.ImportRefusal:
    return marketdata_pb2.ImportRefusal(
        reason=refusal.reason,
        message=refusal.message,
        violations=[
            marketdata_pb2.ImportViolation(field=field, description=description)
            for field, description in refusal.violations.items()
        ],
        wrong_line_count=refusal.wrong_line_count,
    )


def deletion_from_proto(request: marketdata_pb2.DeleteCandlesRequest, key: RequestKey) -> Deletion:
    return Deletion(
        user_id=key.user_id,
        request_id=key.request_id,
        digest=key.digest,
        instrument_id=request.instrument_id,
        size=bar_size(request.bar_size),
        start=time_from_proto(request.start_time),
        end=time_from_proto(request.end_time),
    )


def deletion_to_proto(reached: Deletion) -> marketdata_pb2.DeleteCandlesResponse:
    return marketdata_pb2.DeleteCandlesResponse(
        deleted_count=reached.deleted_count, remade_count=reached.remade_count, done=reached.is_done
    )


def export_from_proto(request: marketdata_pb2.ExportCandlesRequest) -> Export:
    return Export(
        instrument_id=request.instrument_id,
        size=bar_size(request.bar_size),
        start=time_from_proto(request.start_time) if request.HasField("start_time") else None,
        end=time_from_proto(request.end_time) if request.HasField("end_time") else None,
        format=EXPORT_FORMATS[request.format],
    )
