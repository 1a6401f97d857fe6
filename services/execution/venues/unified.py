"""Any other venue that ccxt knows, through its unified calls: experimental, which its card says.

Without having been proved a venue is promised less. It is refused only what ccxt is sure of, an order whose outcome is unknown
is settled by a record alone and never by the lack of one, nothing is replaced, and what happens is found by asking.
"""

import json
import math
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from importlib import import_module
from typing import Any

from libs import native
from libs.bus.budget import Use
from libs.matching.orders import Side
from libs.money import plain
from libs.venues import retry_seconds
from services.execution.domain import OrderType
from services.execution.venues.ccxt_port import (
    ATTEMPT,
    MILLISECOND_NS,
    WORDS_MAX,
    Answered,
    CcxtPort,
    Manner,
    StreamLost,
    Verdict,
    exact,
    exact_or_none,
)
from services.execution.venues.port import (
    INSTRUMENTS_MAX,
    NOT_NATIVE,
    Balance,
    Card,
    Done,
    FillPage,
    Lost,
    NotNow,
    OrderState,
    Outcome,
    Refused,
    Replacing,
    StreamEvent,
    Ticket,
    Told,
    VenueFill,
    VenueOrder,
)

PAGE_FILLS = 100
MANNER = Manner(options={"defaultType": "spot", "warnOnFetchOpenOrdersWithoutSymbol": False})
NOT_OPEN = "NOT_OPEN"
STATES = {
    "open": OrderState.WORKING,
    "closed": OrderState.FILLED,
    "canceled": OrderState.CANCELED,
    "expired": OrderState.EXPIRED,
    "rejected": OrderState.REJECTED,
}
MILLISECONDS_MIN = 10**11
"""Below it a time since 1970 is one in seconds, or no time."""
WORDS = ("msg", "message", "retMsg", "error", "label", "code", "retCode")


def card_of(venue: str) -> Card:
    return Card(
        **native.usual(venue).facts,
        is_proved=False,
        replacing=Replacing.NOT_NATIVE,
        has_stream=False,
        validity_seconds=math.inf,
    )


def never_twice(nonce: Callable[[], int]) -> Callable[[], int]:
    """What ccxt counts requests by, where that is no coarser than milliseconds: some venues refuse the second of two alike."""
    last = 0

    def later() -> int:
        nonlocal last
        asked = nonce()
        if asked < MILLISECONDS_MIN:
            return asked
        last = max(last + 1, asked)
        return last

    return later


class UnifiedPort(CcxtPort):
    """See VenuePort."""

    def __init__(self, card: Card, exchange: Any, *of: Any) -> None:
        # What is no error by its status may be one by what only ccxt knows of the venue.
        self._read_errors = exchange.handle_errors
        exchange.number = str
        exchange.nonce = never_twice(exchange.nonce)
        super().__init__(card, exchange, *of)
        self._ccxt = import_module("ccxt")

    async def submit(self, ticket: Ticket) -> Outcome:
        if refused := self.card.refusal(ticket):
            return refused
        name = await self._beforehand(self._name_of(ticket.instrument_id))
        if isinstance(name, (NotNow, Refused)):
            return name
        quantity = plain(ticket.quantity)
        price = None if ticket.limit_price is None else plain(ticket.limit_price)
        if name is None or not self._is_on_grid(name, ticket):
            return Refused(code=NOT_NATIVE, words=f"{self.card.venue} has no such order of {ticket.instrument_id}")
        params: dict[str, Any] = {"clientOrderId": ticket.client_order_id}
        if ticket.order_type is OrderType.LIMIT:
            params["timeInForce"] = ticket.time_in_force.name

        def read(answer: Any) -> Done:
            if answer.get("clientOrderId") not in {None, ticket.client_order_id} or not answer["id"]:
                raise ValueError("the answer is about another order")
            return Done(venue_order_id=str(answer["id"]))

        order_type, side = ticket.order_type.value, ticket.side.value
        return await self._command(Use.ORDER, read, "create_order", name, order_type, side, quantity, price, params)

    async def cancel(self, instrument_id: str, client_order_id: str, venue_order_id: str = "") -> Outcome:
        """By the venue's id, which not every venue lets be left out."""
        if not venue_order_id:
            found = await self._beforehand(self.open_orders())
            if isinstance(found, (NotNow, Refused)):
                return found
            mine = [order for order in found if order.client_order_id == client_order_id]
            if not mine:
                return Refused(code=NOT_OPEN, words=f"{self.card.venue} has no such open order")
            venue_order_id = mine[0].venue_order_id
        name = await self._beforehand(self._name_of(instrument_id))
        if isinstance(name, (NotNow, Refused)):
            return name
        return await self._command(Use.CANCEL, lambda _: Done(), "cancel_order", venue_order_id, name)

    async def replace(self, working: VenueOrder, ticket: Ticket) -> Outcome:
        return Refused(code=NOT_NATIVE, words=f"orders at {self.card.venue} are not replaced")

    async def open_orders(self, instrument_id: str = "") -> Sequence[VenueOrder]:
        """Of all: not every venue can be asked for one instrument's."""
        return await self._question(lambda found: [self._order(each) for each in found], "fetch_open_orders")

    async def order_by_client_id(self, client_order_id: str, instrument_id: str) -> VenueOrder | None:
        """Among the newest that the venue tells; what is older is not found."""
        mine = [order for order in await self.open_orders() if order.client_order_id == client_order_id]
        name = await self._name_of(instrument_id)
        if not mine and name is not None:
            method = "fetch_orders" if self._exchange.has["fetchOrders"] else "fetch_closed_orders"
            found = await self._question(lambda found: [self._order(each) for each in found], method, name)
            mine = [order for order in found if order.client_order_id == client_order_id]
        return max(mine, key=lambda order: order.time_ns, default=None)

    async def fills_since(self, cursor: str, instrument_ids: Sequence[str]) -> FillPage:
        """The cursor has the time of the last fill of each instrument, in milliseconds; those of it come again."""
        if len(instrument_ids) > INSTRUMENTS_MAX:
            raise ValueError(f"fills of more than {INSTRUMENTS_MAX} instruments at once")
        reached: dict[str, int] = json.loads(cursor) if cursor else {}
        fills: list[VenueFill] = []
        is_last = True
        for instrument_id in instrument_ids:
            if (name := await self._name_of(instrument_id)) is None:
                continue
            since = reached.get(instrument_id)
            found = await self._question(
                lambda found: [self._fill(each) for each in found], "fetch_my_trades", name, since, PAGE_FILLS
            )
            found.sort(key=lambda fill: fill.time_ns)
            fills += found
            newest = found[-1].time_ns // MILLISECOND_NS if found else since or 0
            is_last = is_last and newest == (since or 0)
            reached[instrument_id] = newest
        return FillPage(fills=tuple(fills), cursor=json.dumps(reached, sort_keys=True), is_last=is_last)

    async def balances(self) -> dict[str, Balance]:
        def read(found: Any) -> dict[str, Balance]:
            return {
                asset: Balance(free=exact(free), locked=exact(found["used"][asset]))
                for asset, free in found["free"].items()
            }

        return await self._question(read, "fetch_balance")

    async def stream(self) -> AsyncIterator[StreamEvent]:
        yield Lost(why=f"{self.card.venue} is not listened to")

    # What it lists.

    async def _name_of(self, instrument_id: str) -> str | None:
        """Ccxt's. Raises VenueUnavailable, VenueRefused."""
        symbol = instrument_id.removeprefix(f"{self.card.venue}:")
        markets = await self._question(lambda found: found, "load_markets")
        return next(
            (
                name
                for name, market in markets.items()
                if market.get("spot") and f"{market['base']}{market['quote']}" == symbol
            ),
            None,
        )

    def _is_on_grid(self, name: str, ticket: Ticket) -> bool:
        """Ccxt cuts off what is too fine, where it is to be refused."""
        amount = self._exchange.amount_to_precision(name, plain(ticket.quantity))
        price = ticket.limit_price
        return Decimal(amount) == ticket.quantity and (
            price is None or Decimal(self._exchange.price_to_precision(name, plain(price))) == price
        )

    def _instrument_of(self, name: str) -> str:
        market = self._exchange.market(name)
        return f"{self.card.venue}:{market['base']}{market['quote']}"

    # What it says.

    def _hear(
        self, status: int, reason: str, url: str, method: str, headers: Any, body: str, response: Any, *request: Any
    ) -> None:
        try:
            self._read_errors(status, reason, url, method, headers, body, response, *request)
        except self._ccxt.BaseError as error:
            # Its kind alone, and what the venue said: what ccxt says may hold the request.
            words = self.said(status, response) or ("", "")
            verdict = self._verdict_of(error, status, method)
            raise Answered(status, type(error).__name__, words[1], retry_seconds(headers), verdict) from None
        super()._hear(status, reason, url, method, headers, body, response, *request)

    def _verdict_of(self, error: Exception, status: int, method: str) -> Verdict:
        ccxt, has_left = self._ccxt, ATTEMPT.get().has_left
        if status in {418, 429} or isinstance(error, (ccxt.DDoSProtection, ccxt.RateLimitExceeded)):
            return Verdict.NOT_NOW if not has_left or method != "GET" else Verdict.UNKNOWN
        known = (ccxt.InsufficientFunds, ccxt.InvalidOrder, ccxt.BadSymbol, ccxt.AuthenticationError)
        is_sure = isinstance(error, known) and not isinstance(error, ccxt.DuplicateOrderId) and status < 500
        # What is asked after an order was sent says nothing of it.
        return Verdict.REFUSED if is_sure and (not has_left or method != "GET") else Verdict.UNKNOWN

    def said(self, status: int, response: Any) -> tuple[str, str] | None:
        if status < 400:
            return None
        told = response if isinstance(response, dict) else {}
        return str(status), "; ".join(str(told[word]) for word in WORDS if told.get(word))[:WORDS_MAX]

    def verdict(self, said: Answered) -> Verdict:
        return said.data if isinstance(said.data, Verdict) else Verdict.UNKNOWN

    def is_of_address(self, said: Answered) -> bool:
        return True

    async def subscription(self) -> tuple[str, dict[str, Any]]:
        raise StreamLost("there is none")

    def is_subscribed(self, message: Any) -> bool:
        return False

    async def told(self, message: Any) -> list[Told]:
        return []

    # What is answered. Each raises one of MALFORMED for what is not in its form.

    def _order(self, order: Any) -> VenueOrder:
        return VenueOrder(
            client_order_id=order.get("clientOrderId") or "",
            venue_order_id=order["id"],
            instrument_id=self._instrument_of(order["symbol"]),
            side=Side(order["side"]),
            state=STATES[order["status"]],
            quantity=exact(order["amount"]),
            filled_quantity=exact(order["filled"]),
            limit_price=exact_or_none(order.get("price")) if order.get("type") == "limit" else None,
            stop_price=exact_or_none(order.get("triggerPrice")),
            time_ns=int(order.get("lastUpdateTimestamp") or order["timestamp"]) * MILLISECOND_NS,
        )

    def _fill(self, trade: Any) -> VenueFill:
        fee = trade.get("fee") or {}
        name = trade["symbol"]
        return VenueFill(
            venue_fill_id=f"{name}-{trade['id']}-{trade['order']}",
            venue_order_id=trade["order"],
            client_order_id="",
            instrument_id=self._instrument_of(name),
            side=Side(trade["side"]),
            price=exact(trade["price"]),
            quantity=exact(trade["amount"]),
            fee=exact(fee["cost"]) if fee else Decimal(0),
            fee_asset=fee["currency"] if fee else "",
            maker=trade.get("takerOrMaker") == "maker",
            time_ns=int(trade["timestamp"]) * MILLISECOND_NS,
        )
