"""Whether an account may take an order on: a pure function of the account as it stands under its lock.

Every limit is one rule: where the account would stand with the order at its worst, and what it may be at most. A refusal and
a preview's margin are the same comparison. What only makes a position smaller passes the limits on losses and the switches
that allow reducing, so that nobody is held in what loses money.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal

from libs.errors import Refusal
from libs.money import ZERO, divide, multiply, plain
from services.orders.domain import DAY, Exposure, Lock, Quote, Rate, RiskLimits, Scope, Side, Switch
from services.orders.refusals import (
    NoFreshPrice,
    OrderRateReached,
    RiskLimitReached,
    TooManyOpenOrders,
    TradingHalted,
)

HUNDRED = Decimal(100)
COUNTS = ("open_orders_max", "orders_per_second_max", "day_start_hour")
"""Limits that are whole numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Of an account, what its orders are weighed against."""

    open_orders: int
    rate: Rate
    short_sales: bool
    """Whether it may sell what it has not: without that, every sale reduces."""
    equity: Decimal | None = None
    """In its valuation asset; None where something it holds has no price."""
    day_start_equity: Decimal | None = None
    peak_equity: Decimal | None = None
    locks: frozenset[Lock] = frozenset()
    switches: Sequence[tuple[Scope, Switch]] = field(default=())
    """Those that are on and hold for the order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """An order as it is weighed."""

    side: Side
    quantity: Decimal
    worst_price: Decimal
    """The most it pays or the least it takes; of what has no bound, the price it would likely get."""
    limit_price: Decimal | None
    """What the collar looks at; None for orders that take the market's price within a protection of their own."""
    reference_price: Decimal | None
    """What it would trade against now: the ask when it buys, the bid when it sells, else the last price."""
    replaced_quantity: Decimal = ZERO
    """Of an order that is changed: what of it counts as open already."""
    orders: int = 1
    """How many are placed together; none where one is changed."""
    reduce_only: bool = False
    """Whether it only reduces, by the room there is for that: what else is open on its side says nothing of it then."""

    @property
    def notional(self) -> Decimal:
        return multiply(self.quantity, self.worst_price)


@dataclass(frozen=True, slots=True, kw_only=True)
class Margin:
    """Where the account would stand with the order, by one limit, and what it may be at most."""

    limit: str
    value: Decimal
    bound: Decimal

    @property
    def is_kept(self) -> bool:
        return self.value <= self.bound


Rule = Callable[[RiskLimits, Standing, Exposure, Proposal], Margin | None]


@dataclass(frozen=True, slots=True)
class Weighing:
    """What an order of an account is weighed by."""

    limits: RiskLimits
    standing: Standing
    exposure: Exposure
    live_trading: bool = False
    """Whether real money is traded here at all."""
    quotes: Mapping[str, Quote | None] = field(default_factory=dict)
    """Of a margin account: of what it holds, and of what is ordered."""

    def refusals(self, proposal: Proposal, now: datetime) -> Iterator[Refusal]:
        return refusals(self.limits, self.standing, self.exposure, proposal, now)

    def switched_off(self, proposal: Proposal) -> Iterator[Refusal]:
        return switched_off(self.standing, reducing=reduces(self.standing, self.exposure, proposal))

    def margins(self, proposal: Proposal) -> Iterator[Margin]:
        return margins(self.limits, self.standing, self.exposure, proposal)


def reduces(standing: Standing, exposure: Exposure, proposal: Proposal) -> bool:
    """Whether all that is open on its side, the order with it, does no more than close the position, or it by itself."""
    if proposal.reduce_only:
        return True
    if proposal.side is Side.SELL and not standing.short_sales:
        return True
    after = after_all(exposure, proposal)
    return exposure.position != 0 and abs(after) <= abs(exposure.position) and after * exposure.position >= 0


def after_all(exposure: Exposure, proposal: Proposal) -> Decimal:
    added = proposal.quantity - proposal.replaced_quantity
    return exposure.worst(proposal.side) + (added if proposal.side is Side.BUY else -added)


def open_orders(limits: RiskLimits, standing: Standing, exposure: Exposure, proposal: Proposal) -> Margin | None:
    count = standing.open_orders + proposal.orders
    return Margin(limit="open_orders_max", value=Decimal(count), bound=Decimal(limits.open_orders_max))


def order_quantity(limits: RiskLimits, standing: Standing, exposure: Exposure, proposal: Proposal) -> Margin | None:
    return margin("order_quantity_max", proposal.quantity, limits.order_quantity_max)


def order_notional(limits: RiskLimits, standing: Standing, exposure: Exposure, proposal: Proposal) -> Margin | None:
    return margin("order_notional_max", proposal.notional, limits.order_notional_max)


def position_quantity(limits: RiskLimits, standing: Standing, exposure: Exposure, proposal: Proposal) -> Margin | None:
    if limits.position_quantity_max is None or reduces(standing, exposure, proposal):
        return None
    return margin("position_quantity_max", abs(after_all(exposure, proposal)), limits.position_quantity_max)


def position_notional(limits: RiskLimits, standing: Standing, exposure: Exposure, proposal: Proposal) -> Margin | None:
    if limits.position_notional_max is None or reduces(standing, exposure, proposal):
        return None
    price = max(proposal.reference_price or ZERO, proposal.worst_price)
    return margin(
        "position_notional_max", multiply(abs(after_all(exposure, proposal)), price), limits.position_notional_max
    )


def price_collar(limits: RiskLimits, standing: Standing, exposure: Exposure, proposal: Proposal) -> Margin | None:
    """How far beyond the market's price the limit is, on the side where that costs money."""
    if proposal.limit_price is None or not proposal.reference_price:
        return None
    beyond = proposal.limit_price - proposal.reference_price
    if proposal.side is Side.SELL:
        beyond = -beyond
    percent = divide(multiply(max(ZERO, beyond), HUNDRED), proposal.reference_price)
    return margin("price_collar_percent", percent, limits.price_collar_percent)


def fat_finger(limits: RiskLimits, standing: Standing, exposure: Exposure, proposal: Proposal) -> Margin | None:
    """The order's part of what the account is worth."""
    if limits.fat_finger_percent is None or standing.equity is None or reduces(standing, exposure, proposal):
        return None
    if standing.equity <= 0:
        return margin("fat_finger_percent", HUNDRED, ZERO)
    percent = divide(multiply(proposal.notional, HUNDRED), standing.equity)
    return margin("fat_finger_percent", percent, limits.fat_finger_percent)


def daily_loss(limits: RiskLimits, standing: Standing, exposure: Exposure, proposal: Proposal) -> Margin | None:
    if limits.daily_loss_max is None or reduces(standing, exposure, proposal):
        return None
    return daily_loss_of(limits, standing.equity, standing.day_start_equity)


def drawdown(limits: RiskLimits, standing: Standing, exposure: Exposure, proposal: Proposal) -> Margin | None:
    if limits.drawdown_percent_max is None or reduces(standing, exposure, proposal):
        return None
    return drawdown_of(limits, standing.equity, standing.peak_equity)


def daily_loss_of(limits: RiskLimits, equity: Decimal | None, day_start_equity: Decimal | None) -> Margin | None:
    """What an account has lost since its day began."""
    if equity is None or day_start_equity is None:
        return None
    return margin("daily_loss_max", max(ZERO, day_start_equity - equity), limits.daily_loss_max)


def drawdown_of(limits: RiskLimits, equity: Decimal | None, peak_equity: Decimal | None) -> Margin | None:
    """What it has lost of the most it was ever worth."""
    if equity is None or peak_equity is None or peak_equity <= 0:
        return None
    percent = divide(multiply(peak_equity - equity, HUNDRED), peak_equity)
    return margin("drawdown_percent_max", max(ZERO, percent), limits.drawdown_percent_max)


def margin(limit: str, value: Decimal, bound: Decimal | None) -> Margin | None:
    return None if bound is None else Margin(limit=limit, value=value, bound=bound)


RULES: Sequence[Rule] = (
    open_orders,
    order_quantity,
    order_notional,
    position_quantity,
    position_notional,
    price_collar,
    fat_finger,
    daily_loss,
    drawdown,
)


def margins(limits: RiskLimits, standing: Standing, exposure: Exposure, proposal: Proposal) -> Iterator[Margin]:
    """Every limit the order is held against, in the order of RULES."""
    for rule in RULES:
        if weighed := rule(limits, standing, exposure, proposal):
            yield weighed


def refusals(
    limits: RiskLimits, standing: Standing, exposure: Exposure, proposal: Proposal, now: datetime
) -> Iterator[Refusal]:
    """Everything for which the order is refused; the first is the one that is told."""
    reducing = reduces(standing, exposure, proposal)
    yield from switched_off(standing, reducing=reducing)
    if not reducing:
        for lock in sorted(standing.locks, key=lambda lock: lock.value):
            yield TradingHalted(
                f"the account is locked for its {lock.value}",
                limit=f"lock/{lock.value}",
                value="LOCKED",
                bound="UNLOCKED",
            )
        if standing.equity is None and limits.go_by_worth:
            # What it has lost is not known, so that it may be too much.
            yield NoFreshPrice("something the account holds has no price, and its limits go by what it is worth")
    level = standing.rate.at(now, limits.orders_per_second_max).level + proposal.orders
    excess = level - max(proposal.orders, limits.orders_per_second_max)
    if proposal.orders and excess > 0:
        yield OrderRateReached(
            "orders come too fast",
            retry_after_seconds=float(divide(excess, Decimal(limits.orders_per_second_max))),
            limit="orders_per_second_max",
            value=plain(level),
            bound=str(limits.orders_per_second_max),
        )
    for weighed in margins(limits, standing, exposure, proposal):
        if not weighed.is_kept:
            refused = TooManyOpenOrders if weighed.limit == "open_orders_max" else RiskLimitReached
            yield refused(
                f"{weighed.limit} is {plain(weighed.bound)}, and it would be {plain(weighed.value)}",
                limit=weighed.limit,
                value=plain(weighed.value),
                bound=plain(weighed.bound),
            )


def switched_off(standing: Standing, *, reducing: bool) -> Iterator[Refusal]:
    """Whether a kill switch forbids an order, which may only make a position smaller."""
    for scope, switch in standing.switches:
        if switch is Switch.HALT or (switch is Switch.REDUCE_ONLY and not reducing):
            yield TradingHalted(
                f"the {scope.value}'s kill switch is on",
                limit=f"kill_switch/{scope.value}",
                value=switch.name,
                bound="OFF",
            )


def with_set(usual: RiskLimits, limits: Mapping[str, Decimal]) -> RiskLimits:
    """The limits as they hold: those that were set, by name, and else the usual."""
    return replace(usual, **{name: int(value) if name in COUNTS else value for name, value in limits.items()})  # type: ignore[arg-type]


def day_start(now: datetime, hour: int) -> datetime:
    """When the day of the daily loss began: the last time it was that hour in UTC."""
    start = now.astimezone(UTC).replace(hour=hour, minute=0, second=0, microsecond=0)
    return start if start <= now else start - DAY


def worst(switches: Iterable[Switch]) -> Switch:
    return max(switches, key=lambda switch: switch.value, default=Switch.OFF)
