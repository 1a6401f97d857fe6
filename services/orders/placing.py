"""Whether an order is accepted, and how: what it may cost at its worst, and everything for which it is refused."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from datetime import time as day_time
from decimal import ROUND_DOWN, ROUND_UP, Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

from libs.errors import Invalid, Refusal
from libs.money import CONTEXT, ZERO, is_multiple, multiply, plain
from services.orders import books, life, live, margin
from services.orders.domain import (
    EPOCH,
    Account,
    AccountState,
    GroupKind,
    GroupRole,
    Instrument,
    Kind,
    Limits,
    Mode,
    Order,
    OrderType,
    Quote,
    Side,
    State,
    Ticket,
    TimeInForce,
    Trail,
)
from services.orders.refusals import (
    ExpireTimePast,
    GroupInvalid,
    InstrumentHalted,
    InstrumentNotAtVenue,
    InstrumentNotFound,
    InsufficientBalance,
    InsufficientMargin,
    NoFreshPrice,
    NotionalTooSmall,
    NotReducing,
    PriceOffTick,
    QuantityOffLot,
    StopOffTick,
    StopWouldTrigger,
    UserDeleted,
)
from services.orders.risk import Proposal, Weighing

# So much may a feeder's clock be ahead of ours. A quote from further ahead may have any age: a clock was set back.
CLOCK_SKEW_SECONDS_MAX = 1.0
LIFETIME_MIN = timedelta(seconds=1)
"""Between the market time of the decision and the time at which an order expires."""
RESTING = frozenset({TimeInForce.GTC, TimeInForce.DAY, TimeInForce.GTD})
NAMED_MAX = 3
"""Of the orders that stand in the way of one, so many are named in its refusal."""
BRACKET_ORDERS, PAIR_ORDERS = 3, 2


def place(
    state: AccountState,
    ticket: Ticket,
    *,
    instrument: Instrument | None,
    quote: Quote | None,
    limits: Limits,
    weighing: Weighing,
    order_id: UUID,
    now: datetime,
) -> Order:
    """Accepts an order and sets aside what it may cost, or refuses it and changes nothing."""
    order = drafted(state, ticket, instrument=instrument, quote=quote, limits=limits, order_id=order_id, now=now)
    assert instrument is not None, "without one nothing is drafted"
    asked = {"instrument": instrument, "quote": quote, "limits": limits, "weighing": weighing, "now": now}
    for refusal in objections(state, order, **asked):
        raise refusal
    count_placed(state, weighing, 1, now)
    state.add(order.reserved_asset, reserved=order.reserved)
    if state.account.is_margin and order.reduce_only:
        # It takes room to close from those that are there.
        state.unbacked.add(order.instrument_id)
    if ticket.annotation is not None:
        state.annotations[order.order_id] = ticket.annotation
    return state.note(Kind.ACCEPTED, order, now, send_before=send_before(state.account, order, limits, now))


def send_before(account: Account, order: Order, limits: Limits, now: datetime) -> datetime | None:
    """Until when an accepted order is to be sent; None where there is no such time, or it waits here."""
    if account.mode is not Mode.LIVE or order.state is State.HELD:
        return None
    return live.send_before(limits, now)


def drafted(
    state: AccountState,
    ticket: Ticket,
    *,
    instrument: Instrument | None,
    quote: Quote | None,
    limits: Limits,
    order_id: UUID,
    now: datetime,
    group: tuple[UUID, GroupRole] | None = None,
    waits: bool = False,
) -> Order:
    """The order as it would be accepted. One that waits is held until the entry of its group trades.

    So is one of a live account until its price is reached, where the venue does not take it as it is.

    Raises UserDeleted, InstrumentNotFound and InstrumentNotForAccount.
    """
    if state.account.closed:
        raise UserDeleted
    if instrument is None:
        raise InstrumentNotFound(f"no instrument {ticket.instrument_id}", instrument_id=ticket.instrument_id)
    margin.check_kind(state.account, instrument)
    stop_price, protection = prices_of(ticket, instrument, quote, limits, waits=waits)
    fee_rate = max(ZERO, instrument.maker_fee_rate, instrument.taker_fee_rate)
    group_id, group_role = group or (None, None)
    order = Order(
        order_id=order_id,
        user_id=state.account.user_id,
        account_id=state.account.account_id,
        instrument_id=ticket.instrument_id,
        side=ticket.side,
        order_type=ticket.order_type,
        time_in_force=ticket.time_in_force,
        quantity=ticket.quantity,
        limit_price=ticket.limit_price,
        protection_price=protection,
        state=State.HELD if waits else State.PENDING_NEW,
        filled_quantity=ZERO,
        filled_notional=ZERO,
        fees=ZERO,
        fee_asset=instrument.quote_asset,
        reserved_asset=margin.reserved_asset(state.account, instrument, ticket.side),
        reserved=ZERO,
        fee_rate=fee_rate,
        reason="",
        create_time=now,
        update_time=now,
        # Without a quote nothing was decided on: the first tick that comes may fill it.
        market_time=quote.market_time if quote else EPOCH,
        revision=state.account.account_sequence + 1,
        stop_price=stop_price,
        trail=ticket.trail,
        expire_time=expire_time_of(ticket, instrument, clock(state, quote, now)),
        post_only=ticket.post_only,
        reduce_only=ticket.reduce_only,
        deployment_id=ticket.deployment_id,
        group_id=group_id,
        group_role=group_role,
        released_quantity=ZERO if waits else None,
        parent_order_id=ticket.parent_order_id,
        slice_number=ticket.slice_number,
    )
    if state.account.mode is Mode.LIVE and (waits or live.lacks(state.account.venue, order)):
        order = held_here(order)
    if group is not None:
        # What orders of a group set aside, they set aside together.
        return order
    if instrument.perpetual is None:
        needed = life.cost(order.side, order.quantity, order.worst_price or ZERO, fee_rate)
    else:
        state.perpetuals.setdefault(instrument.instrument_id, instrument.perpetual)
        margin.back(state)
        needed = margin.need_of_new(state, order).total
    return replace(order, reserved=needed)


def held_here(order: Order) -> Order:
    return replace(order, state=State.HELD, triggers_here=True)


def objections(
    state: AccountState,
    order: Order,
    *,
    instrument: Instrument,
    quote: Quote | None,
    limits: Limits,
    weighing: Weighing,
    now: datetime,
    placed_together: int = 1,
) -> Iterator[Refusal]:
    """Everything for which a drafted order is refused, the first first; what it needs is only judged if it is known."""
    if not instrument.trading:
        yield InstrumentHalted(f"{order.instrument_id} cannot be traded now", instrument_id=order.instrument_id)
    if state.account.mode is Mode.LIVE:
        yield from live_objections(state.account, order, weighing)
    if off_grid := grid_objection(order.quantity, order.limit_price, order.stop_price, order.trail, instrument):
        yield off_grid
    if order.expire_time is not None and order.expire_time < clock(state, quote, now) + LIFETIME_MIN:
        yield ExpireTimePast({"expire_time": "has passed"}, expire_time=order.expire_time.isoformat())
    price = order.worst_price
    if price is None:
        if order.order_type is not OrderType.TRAILING_STOP or order.side is Side.BUY:
            yield no_fresh_price(order.instrument_id, quote, limits)
            return
        price = order.stop_price
    if not order.awaits_entry and (triggered := trigger_objection(order, quote, limits)):
        yield triggered
    if price is not None and (too_small := notional_objection(order.quantity, price, instrument)):
        yield too_small
    if order.reduce_only and not order.awaits_entry:
        yield from reducing_objections(state, order, order.quantity)
    if not order.awaits_entry:
        yield from weighing.refusals(proposal_of(order, quote, limits, orders=placed_together), now)
    if not state.account.is_margin:
        if short := balance_objection(state, order.reserved_asset, order.reserved):
            yield short
    elif order.group_id is None:
        mark = fresh_mark(quote, limits) or ZERO
        # A sale at less than the mark price opens a position of the mark price all the same.
        need = margin.need_of_new(state, order, mark if order.side is Side.SELL else ZERO)
        yield from margin_objections(state, order, need.total, weighing, limits, opens=opens(order, need))


def opens(order: Order, need: margin.Need) -> bool:
    """Whether an order of a margin account opens anything; one whose price nothing tells may."""
    return bool(need.margin) or (not order.reduce_only and not margin.worst_price(order))


def margin_objections(
    state: AccountState, order: Order, needed: Decimal, weighing: Weighing, limits: Limits, *, opens: bool
) -> Iterator[Refusal]:
    """Where a margin account has not so much more to set aside for an order; one that opens nothing is not refused."""
    if not opens:
        return
    asset = order.reserved_asset
    marks = {each: fresh_mark(quote, limits) for each, quote in weighing.quotes.items()}
    own = margin.holdings(state.account, state.positions.values(), state.perpetuals, marks.get)
    missing = [order.instrument_id] if marks.get(order.instrument_id) is None else []
    missing += [each.position.instrument_id for each in own if each.mark is None]
    for instrument_id in dict.fromkeys(missing):
        yield no_fresh_mark(instrument_id, weighing.quotes.get(instrument_id), limits)
    if not margin.worst_price(order):
        yield no_fresh_price(order.instrument_id, weighing.quotes.get(order.instrument_id), limits)
        return
    available = margin.standing(asset, state.balances.get(asset), own).available
    if available is not None and needed > available:
        yield insufficient_margin(asset, needed, available)


def insufficient_margin(asset: str, needed: Decimal, available: Decimal) -> InsufficientMargin:
    return InsufficientMargin(
        f"{plain(needed)} {asset} of margin is needed and {plain(available)} available",
        asset=asset,
        needed=plain(needed),
        available=plain(available),
    )


def fresh_mark(quote: Quote | None, limits: Limits) -> Decimal | None:
    """The mark price, if it is of the last seconds."""
    if quote is None or not -CLOCK_SKEW_SECONDS_MAX <= quote.mark_age_seconds <= limits.quote_age_seconds_max:
        return None
    return quote.mark


def no_fresh_mark(instrument_id: str, quote: Quote | None, limits: Limits) -> NoFreshPrice:
    age = "never" if quote is None or quote.mark is None else f"{quote.mark_age_seconds:.1f}"
    return NoFreshPrice(
        f"no mark price of {instrument_id} in the last {limits.quote_age_seconds_max:g} s",
        instrument_id=instrument_id,
        age_seconds=age,
    )


def live_objections(account: Account, order: Order, weighing: Weighing) -> Iterator[Refusal]:
    """Where an order, or a change of one, may not be sent for real money."""
    yield from live.objections(account, enabled=weighing.live_trading)
    venue = order.instrument_id.partition(":")[0]
    if venue != account.venue:
        violations = {"instrument_id": f"must be one of {account.venue}"}
        yield InstrumentNotAtVenue(violations, instrument_id=order.instrument_id, venue=account.venue)
    if not_taken := live.not_taken(account.venue, order):
        yield not_taken


def proposal_of(
    order: Order, quote: Quote | None, limits: Limits, *, orders: int = 1, replaced: Decimal = ZERO
) -> Proposal:
    """The order as limits weigh it. One whose worst price nothing tells is taken at where its stop begins."""
    reference = likely_price(order, quote)
    if quote is not None and is_fresh(quote, limits):
        reference = (quote.ask if order.side is Side.BUY else quote.bid) or quote.last or reference
    return Proposal(
        side=order.side,
        quantity=order.remaining,
        worst_price=order.worst_price or order.stop_price or reference or ZERO,
        limit_price=order.limit_price if order.stop_price is None else None,
        reference_price=reference,
        replaced_quantity=replaced,
        orders=orders,
        reduce_only=order.reduce_only,
    )


def count_placed(state: AccountState, weighing: Weighing, orders: int, now: datetime) -> None:
    """Counts orders against the rate at which the account may place them."""
    rate = state.account.rate.at(now, weighing.limits.orders_per_second_max)
    state.account = replace(state.account, rate_level=rate.level + orders, rate_time=now)


def grid_objection(
    quantity: Decimal | None,
    limit_price: Decimal | None,
    stop_price: Decimal | None,
    trail: Trail | None,
    instrument: Instrument,
) -> Invalid | None:
    """Names every field that is off its grid; the reason, and a price in the metadata, are the first one's."""
    reasons: list[type[Invalid]] = []
    violations: dict[str, str] = {}
    metadata: dict[str, str] = {}
    if quantity is not None and not is_multiple(quantity, instrument.lot_size):
        reasons.append(QuantityOffLot)
        violations["quantity"] = f"must be a multiple of {plain(instrument.lot_size)}"
        metadata |= {"quantity": plain(quantity), "lot_size": plain(instrument.lot_size)}
    prices: list[tuple[str, Decimal | None, type[Invalid]]] = [("limit_price", limit_price, PriceOffTick)]
    if trail is not None:
        # Where it begins is our own doing, and on the grid.
        prices.append(("trail", trail.amount, StopOffTick))
    elif stop_price is not None:
        prices.append(("stop_price", stop_price, StopOffTick))
    for field, price, reason in prices:
        if price is not None and not is_multiple(price, instrument.tick_size):
            reasons.append(reason)
            violations[field] = f"must be a multiple of {plain(instrument.tick_size)}"
            metadata = {"price": plain(price), "tick_size": plain(instrument.tick_size)} | metadata
    if trail is not None and stop_price is not None and stop_price <= 0:
        reasons.append(Invalid)
        violations["trail"] = "must be less than the last price"
    return reasons[0](violations, **metadata) if reasons else None


def trigger_objection(order: Order, quote: Quote | None, limits: Limits) -> Refusal | None:
    """Where the last price is known to have reached the stop already."""
    if order.stop_price is None or order.trail is not None or not is_fresh(quote, limits):
        return None
    last = quote.last if quote else None
    if last is None or not is_reached(order, order.stop_price, last):
        return None
    return StopWouldTrigger(
        f"the last price is {plain(last)} already", stop_price=plain(order.stop_price), last_price=plain(last)
    )


def is_reached(order: Order, price: Decimal, last: Decimal) -> bool:
    """Whether the last price is at what an order waits for, or beyond: a stop is left, a limit or a profit is come to."""
    is_stop = order.order_type in live.PROTECTING
    from_below = (order.side is Side.BUY) is is_stop
    return last >= price if from_below else last <= price


def notional_objection(quantity: Decimal, price: Decimal, instrument: Instrument) -> Refusal | None:
    notional = multiply(quantity, price)
    if notional >= instrument.minimum_notional:
        return None
    return NotionalTooSmall(
        f"{plain(notional)} {instrument.quote_asset} is below the least",
        notional=plain(notional),
        minimum_notional=plain(instrument.minimum_notional),
    )


def reducing_objections(state: AccountState, order: Order, quantity: Decimal) -> Iterator[Refusal]:
    """Where there is less to reduce than an order is for, with what others want that only reduce, but for its own group.

    What has been asked to make way for it wants nothing more.
    """
    others = [
        other
        for other in life.reducing(state, order.instrument_id, order.side)
        if other.order_id != order.order_id
        and (other.group_id is None or other.group_id != order.group_id)
        and not (other.state is State.PENDING_CANCEL and other.reason == life.CLOSING)
    ]
    room = life.reducible(state, order.instrument_id, order.side) - life.wanted(others)
    if quantity > room:
        wanting = [str(other.order_id) for other in others if other.at_venue]
        beside = f" beside {', '.join(wanting[:NAMED_MAX])}" if wanting else ""
        yield NotReducing(
            f"the order is for more than there is to reduce{beside}",
            quantity=plain(quantity),
            reducible=plain(max(ZERO, room)),
        )


def balance_objection(state: AccountState, asset: str, needed: Decimal) -> Refusal | None:
    available = state.balance(asset).available
    if needed <= available:
        return None
    return InsufficientBalance(
        f"{plain(needed)} {asset} is needed and {plain(available)} available",
        asset=asset,
        needed=plain(needed),
        available=plain(available),
    )


def clock(state: AccountState, quote: Quote | None, now: datetime) -> datetime:
    """The time of the market that an account trades in: of a replayed one that is the past."""
    return quote.market_time if quote is not None and state.account.mode is Mode.PAPER else now


def expire_time_of(ticket: Ticket, instrument: Instrument, market_time: datetime) -> datetime | None:
    """What was asked for with GTD; with DAY the next midnight of the instrument's exchange."""
    if ticket.time_in_force is not TimeInForce.DAY:
        return ticket.expire_time
    zone = ZoneInfo(instrument.time_zone)
    tomorrow = market_time.astimezone(zone).date() + timedelta(days=1)
    return datetime.combine(tomorrow, day_time.min, zone).astimezone(UTC)


def is_fresh(quote: Quote | None, limits: Limits) -> bool:
    return quote is not None and -CLOCK_SKEW_SECONDS_MAX <= quote.age_seconds <= limits.quote_age_seconds_max


def no_fresh_price(instrument_id: str, quote: Quote | None, limits: Limits) -> NoFreshPrice:
    why = f"no quote of {instrument_id} in the last {limits.quote_age_seconds_max:g} s"
    if is_fresh(quote, limits):
        why = f"{instrument_id} has no price to buy or sell at"
    age = "never" if quote is None else f"{quote.age_seconds:.1f}"
    return NoFreshPrice(why, instrument_id=instrument_id, age_seconds=age)


def prices_of(
    ticket: Ticket, instrument: Instrument, quote: Quote | None, limits: Limits, *, waits: bool = False
) -> tuple[Decimal | None, Decimal | None]:
    """Where its stop begins, and where it has no limit the worst price it takes; None for what cannot be known.

    A stop that sells and trails has no worst price. One that buys has: its stop only ever falls. What waits for an entry
    begins to trail when that trades.
    """
    if ticket.order_type is OrderType.LIMIT:
        return None, None
    seen = quote if is_fresh(quote, limits) and not waits else None
    stop_price = ticket.stop_price
    if ticket.trail is not None:
        stop_price = first_stop(ticket.side, ticket.trail, seen.last, instrument) if seen and seen.last else None
    if ticket.limit_price is not None or (ticket.trail is not None and ticket.side is Side.SELL):
        return stop_price, None
    reference = stop_price
    if ticket.order_type is OrderType.MARKET and seen is not None:
        reference = (seen.ask if ticket.side is Side.BUY else seen.bid) or seen.last
    if reference is None:
        return stop_price, None
    return stop_price, protection_price(ticket.side, reference, instrument, limits.market_protection)


def first_stop(side: Side, trail: Trail, last: Decimal, instrument: Instrument) -> Decimal:
    """Where a trailing stop begins: so far from the last price, and onto the tick grid away from it."""
    distance = trail.amount if trail.amount is not None else multiply(last, (trail.percent or ZERO) / 100)
    buys = side is Side.BUY
    return on_grid(last + distance if buys else last - distance, instrument, ROUND_UP if buys else ROUND_DOWN)


def protection_price(side: Side, reference: Decimal, instrument: Instrument, fraction: Decimal) -> Decimal:
    """The worst price: the reference moved by the fraction, onto the tick grid, never past it."""
    buys = side is Side.BUY
    bound = multiply(reference, 1 + fraction if buys else 1 - fraction)
    return on_grid(bound, instrument, ROUND_DOWN if buys else ROUND_UP)


def on_grid(price: Decimal, instrument: Instrument, rounding: str) -> Decimal:
    ticks = CONTEXT.divide(price, instrument.tick_size).to_integral_value(rounding)
    return multiply(ticks, instrument.tick_size)


def likely_price(order: Order, quote: Quote | None) -> Decimal | None:
    """What it would likely trade at: its limit, its stop, or the quote."""
    if order.limit_price is not None or order.stop_price is not None:
        return order.limit_price or order.stop_price
    return ((quote.ask if order.side is Side.BUY else quote.bid) or quote.last) if quote is not None else None


def place_group(
    state: AccountState,
    kind: GroupKind,
    tickets: Sequence[Ticket],
    *,
    instrument: Instrument | None,
    quote: Quote | None,
    limits: Limits,
    weighing: Weighing,
    group_id: UUID,
    next_id: Callable[[], UUID],
    now: datetime,
) -> list[Order]:
    """Accepts orders that depend on each other, or refuses them all and changes nothing."""
    check_group(kind, tickets)
    if state.account.is_margin and kind is GroupKind.BRACKET:
        # Legs leave what the entry has made: with the position gone by other means they must not open the opposite one.
        entry, *legs = tickets
        tickets = [entry, *(replace(leg, reduce_only=True) for leg in legs)]
    orders: list[Order] = []
    for number, (ticket, role) in enumerate(zip(tickets, roles(kind, len(tickets)), strict=True)):
        waits = number > 0 and kind is not GroupKind.OCO
        order = drafted(
            state,
            ticket,
            instrument=instrument,
            quote=quote,
            limits=limits,
            order_id=next_id(),
            now=now,
            group=(group_id, role),
            waits=waits,
        )
        assert instrument is not None, "without one nothing is drafted"
        asked = {"instrument": instrument, "quote": quote, "limits": limits, "weighing": weighing, "now": now}
        for refusal in objections(state, order, **asked, placed_together=len(tickets)):
            raise within(f"orders[{number}]", refusal)
        orders.append(order)
    if kind is GroupKind.OCO and state.account.mode is Mode.LIVE:
        rests = live.resting(state.account.venue, orders)
        orders = [order if order is rests else held_here(order) for order in orders]
    if state.account.is_margin:
        check_group_margin(state, orders, instrument, weighing, limits)
        count_placed(state, weighing, len(tickets), now)
        state.unbacked.add(orders[0].instrument_id)
        return noted_group(state, [(order, ZERO) for order in orders], tickets, limits, now)
    needs = life.group_reserves(orders)
    for asset in {order.reserved_asset for order in orders}:
        needed = sum((need for order, need in needs if order.reserved_asset == asset), ZERO)
        if short := balance_objection(state, asset, needed):
            raise short
    count_placed(state, weighing, len(tickets), now)
    return noted_group(state, needs, tickets, limits, now)


def check_group_margin(
    state: AccountState, orders: Sequence[Order], instrument: Instrument | None, weighing: Weighing, limits: Limits
) -> None:
    """Raises a refusal where a margin account has not enough for orders that are placed together."""
    assert instrument is not None, "without one nothing is drafted"
    assert instrument.perpetual is not None, "a margin account trades nothing else"
    state.perpetuals.setdefault(instrument.instrument_id, instrument.perpetual)
    margin.back(state)
    others = margin.orders_of(state, instrument.instrument_id)
    needs = margin.needs(state, instrument.instrument_id, [*others, *orders])
    more = sum((each.total for each in needs.values()), ZERO) - sum((each.reserved for each in others), ZERO)
    is_opening = any(needs[order.order_id].margin for order in orders)
    for refusal in margin_objections(state, orders[0], more, weighing, limits, opens=is_opening):
        raise refusal


def noted_group(
    state: AccountState,
    needs: Sequence[tuple[Order, Decimal]],
    tickets: Sequence[Ticket],
    limits: Limits,
    now: datetime,
) -> list[Order]:
    """The orders of a group as they are accepted, with so much set aside for each."""
    for (order, needed), ticket in zip(needs, tickets, strict=True):
        until = send_before(state.account, order, limits, now)
        state.note(Kind.ACCEPTED, books.set_aside(state, order, needed), now, send_before=until)
        if ticket.annotation is not None:
            state.annotations[order.order_id] = ticket.annotation
    return [state.orders[order.order_id] for order, _ in needs]


def roles(kind: GroupKind, count: int) -> list[GroupRole]:
    """What each order of a group is, in the order they are asked for."""
    if kind is GroupKind.OCO:
        return [GroupRole.LEG] * count
    return [GroupRole.ENTRY, *[GroupRole.LEG if kind is GroupKind.BRACKET else GroupRole.TRIGGERED] * (count - 1)]


def check_group(kind: GroupKind, tickets: Sequence[Ticket]) -> None:
    """Raises GroupInvalid unless the orders depend on each other as the kind says."""
    found: dict[str, str] = {}
    count = {GroupKind.OCO: PAIR_ORDERS, GroupKind.BRACKET: BRACKET_ORDERS}.get(kind)
    if count is not None and len(tickets) != count:
        raise GroupInvalid({"orders": f"must be {count}"}, kind=kind.name)
    entry = None if kind is GroupKind.OCO else tickets[0]
    dependent = list(enumerate(tickets))[0 if entry is None else 1 :]
    first = dependent[0][1]
    for number, ticket in dependent:
        where = f"orders[{number}]"
        if ticket.order_type is OrderType.MARKET:
            found[f"{where}.order_type"] = "must have a price of its own"
        elif entry is not None and ticket.trail is not None and ticket.side is Side.BUY:
            found[f"{where}.order_type"] = (
                "must not trail and buy: what it costs is not known before the first has traded"
            )
        if kind is GroupKind.OTO:
            continue
        if ticket.time_in_force not in RESTING:
            found[f"{where}.time_in_force"] = "must let it rest"
        if ticket.quantity != first.quantity:
            found[f"{where}.quantity"] = "must be that of the other leg"
        if entry is None and ticket.side is not first.side:
            found[f"{where}.side"] = "must be that of the other leg"
        if entry is not None and ticket.side is entry.side:
            found[f"{where}.side"] = "must be the other than that of the first"
        if entry is not None and ticket.quantity > entry.quantity:
            found[f"{where}.quantity"] = "must not be above that of the first"
    if kind is GroupKind.OTO and entry is not None:
        leaving = sum((ticket.quantity for _, ticket in dependent if ticket.side is not entry.side), ZERO)
        if leaving > entry.quantity:
            found["orders"] = "must not, on the side other than the first's, be for more than the first"
    if found:
        raise GroupInvalid(found, kind=kind.name)


def within(where: str, refusal: Refusal) -> Refusal:
    """A refusal of a part of what was asked for, which names its fields as those of that part."""
    if not isinstance(refusal, Invalid):
        return refusal
    violations = {f"{where}.{field}": why for field, why in refusal.violations.items()}
    return type(refusal)(violations, **refusal.metadata)
