"""Why orders refuses: a class for each reason of the contract."""

from uuid import UUID

from libs.errors import Conflict, Exhausted, Invalid, NotAllowed, NotFound, Unavailable


class AccountNotFound(NotFound):
    reason = "ACCOUNT_NOT_FOUND"


class OrderNotFound(NotFound):
    reason = "ORDER_NOT_FOUND"


class InstrumentNotFound(NotFound):
    reason = "INSTRUMENT_NOT_FOUND"


class InstrumentHalted(NotAllowed):
    reason = "INSTRUMENT_HALTED"


class PriceOffTick(Invalid):
    reason = "PRICE_OFF_TICK"


class QuantityOffLot(Invalid):
    reason = "QUANTITY_OFF_LOT"


class StopOffTick(Invalid):
    reason = "STOP_OFF_TICK"


class StopWouldTrigger(NotAllowed):
    reason = "STOP_WOULD_TRIGGER"


class ExpireTimePast(Invalid):
    reason = "EXPIRE_TIME_PAST"


class NotReducing(NotAllowed):
    reason = "NOT_REDUCING"


class NotReplaceable(NotAllowed):
    reason = "NOT_REPLACEABLE"


class ReplacementInvalid(Invalid):
    reason = "REPLACEMENT_INVALID"


class GroupInvalid(Invalid):
    reason = "GROUP_INVALID"


class NotTakenByVenue(NotAllowed):
    reason = "NOT_TAKEN_BY_VENUE"


class NotionalTooSmall(NotAllowed):
    reason = "NOTIONAL_TOO_SMALL"


class InsufficientBalance(NotAllowed):
    reason = "INSUFFICIENT_BALANCE"


class NoFreshPrice(NotAllowed):
    reason = "NO_FRESH_PRICE"


class OrderDone(NotAllowed):
    reason = "ORDER_DONE"


class TooManyOpenOrders(Exhausted):
    reason = "TOO_MANY_OPEN_ORDERS"


class TooManyAccounts(Exhausted):
    reason = "TOO_MANY_ACCOUNTS"


class UserDeleted(NotAllowed):
    reason = "USER_DELETED"

    def __init__(self) -> None:
        super().__init__("the person was deleted for good")


class ParentOrderNotFound(NotFound):
    reason = "PARENT_ORDER_NOT_FOUND"


class ParentOrderInvalid(Invalid):
    """No schedule can be made of what was asked for."""

    reason = "PARENT_ORDER_INVALID"


class ParentOrderDone(NotAllowed):
    reason = "PARENT_ORDER_DONE"


class TooManyParentOrders(Exhausted):
    reason = "TOO_MANY_PARENT_ORDERS"


class TooBusy(Exhausted):
    reason = "TOO_BUSY"


class AccountLocked(Unavailable):
    """Another transaction is at work on the account; who asked not to wait for it gets this."""


class RiskLimitReached(NotAllowed):
    """With the order the account would be beyond one of its limits."""

    reason = "RISK_LIMIT_REACHED"


class OrderRateReached(Exhausted):
    """The account places orders faster than it may."""

    reason = "ORDER_RATE_REACHED"


class LimitsChanged(Conflict):
    """Somebody else has set the limits since they were read."""

    reason = "LIMITS_CHANGED"


class LiveTradingDisabled(NotAllowed):
    """An operator has not enabled trading with real money."""

    reason = "LIVE_TRADING_DISABLED"


class LiveTradingOff(NotAllowed):
    """The live account is not confirmed, not connected yet, or stopped."""

    reason = "LIVE_TRADING_OFF"


class AccountNotLive(NotAllowed):
    reason = "ACCOUNT_NOT_LIVE"


class NoUsableCredential(NotAllowed):
    reason = "NO_USABLE_CREDENTIAL"


class InstrumentNotAtVenue(Invalid):
    reason = "INSTRUMENT_NOT_AT_VENUE"


class InstrumentNotForAccount(Invalid):
    """A margin account trades perpetual futures alone, and a cash account all else."""

    reason = "INSTRUMENT_NOT_FOR_ACCOUNT"


class InsufficientMargin(NotAllowed):
    reason = "INSUFFICIENT_MARGIN"


class OrderLiquidates(NotAllowed):
    """The order closes a position whose margin is used up, and goes on."""

    reason = "ORDER_LIQUIDATES"

    def __init__(self, order_id: UUID) -> None:
        super().__init__("the order closes a position whose margin is used up", order_id=str(order_id))


class AccountNotMargin(NotAllowed):
    reason = "ACCOUNT_NOT_MARGIN"


class TradingHalted(NotAllowed):
    """A kill switch or a lock forbids the order."""

    reason = "TRADING_HALTED"
