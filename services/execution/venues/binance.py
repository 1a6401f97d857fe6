"""Binance's spot market as a port.

Its numbers are text already, its fills are numbered by symbol, and it takes no request that comes later than a window after
its timestamp.
"""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from libs import native
from libs.bus.budget import Use
from libs.matching.orders import Side
from libs.money import plain
from libs.native import OrderType
from services.execution.venues.ccxt_port import (
    MALFORMED,
    MILLISECOND_NS,
    Answered,
    CcxtPort,
    Manner,
    NotAnswered,
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
    OrderState,
    Outcome,
    Refused,
    Replacing,
    Ticket,
    Told,
    Unknown,
    VenueFill,
    VenueOrder,
    VenueRefused,
)

VENUE = "BINANCE"
WINDOW_MILLISECONDS = 5_000
AHEAD_SECONDS = 1.0
"""A timestamp may be so much later than Binance's own time."""
LEEWAY_SECONDS = 4.0
"""So long a request that was taken in time may be on its way through Binance."""
PAGE_FILLS = 1_000

CARD = Card(
    **native.BINANCE.facts,
    is_proved=True,
    replacing=Replacing.NEW_ORDER,
    has_stream=True,
    validity_seconds=WINDOW_MILLISECONDS / 1_000 + AHEAD_SECONDS + LEEWAY_SECONDS,
)
MANNER = Manner(
    options={"defaultType": "spot", "recvWindow": WINDOW_MILLISECONDS},
    rest_paths={"public": "/api/v3", "private": "/api/v3"},
    stream_paths={"ws-api": {"spot": "/ws-api/v3"}},
)

ORDER_NOT_FOUND, WRONG_TIME = "-2013", "-1021"
# What Binance says of a request that it did not take, by its code. Every other code, and each that comes with a status of
# 500 or more, leaves it open: above all -1000, -1001, -1004, -1006, -1007, -1008, -1010 and -1016.
REFUSED = frozenset(
    {
        "-1002",  # not authorized
        "-1013",  # a filter failed
        "-1014",  # an unsupported combination
        "-1020",  # an unsupported operation
        "-1022",  # the signature is wrong
        "-1100",  # illegal characters
        "-1101",  # too many parameters
        "-1102",  # a parameter is missing or malformed
        "-1103",  # an unknown parameter
        "-1104",  # parameters were not read
        "-1105",  # a parameter is empty
        "-1106",  # a parameter is not required
        "-1108",  # a parameter overflows
        "-1111",  # too precise
        "-1112",  # there are no orders in the book
        "-1114",  # a time in force where none belongs
        "-1115",  # no such time in force
        "-1116",  # no such order type
        "-1117",  # no such side
        "-1118",  # the client order id is empty
        "-1119",  # the original client order id is empty
        "-1121",  # no such symbol
        "-1122",  # the symbol is not in that state
        "-1128",  # optional parameters do not go together
        "-1130",  # a parameter is invalid
        "-1131",  # the window is too long
        "-1145",  # no such restriction of cancels
        "-2008",  # no such key
        "-2010",  # the order was rejected; but see DUPLICATE
        "-2011",  # the cancel was rejected
        ORDER_NOT_FOUND,
        "-2014",  # the key has no such form
        "-2015",  # the key is invalid, or may not do this from here
        "-2016",  # no trading window
        "-2026",  # the order was archived
    }
)
# And of one that it did not take, and would another time.
NOT_NOW = frozenset(
    {
        "-1003",  # too many requests
        "-1015",  # too many orders
        WRONG_TIME,  # the timestamp is outside of the window
    }
)
OF_ACCOUNT = frozenset({"-1015", WRONG_TIME})
"""Of those, what one account did: the others go on."""
WOULD_TRIGGER = "would trigger immediately"
"""Words by which -2010 says that a stop is reached already."""
DUPLICATE = "duplicate"
"""A word by which -2010 says that an order of that id is there."""

STATES: Mapping[str, OrderState] = {
    "NEW": OrderState.WORKING,
    "PENDING_NEW": OrderState.WORKING,
    "PARTIALLY_FILLED": OrderState.WORKING,
    "PENDING_CANCEL": OrderState.WORKING,
    "FILLED": OrderState.FILLED,
    "CANCELED": OrderState.CANCELED,
    "REJECTED": OrderState.REJECTED,
    "EXPIRED": OrderState.EXPIRED,
    "EXPIRED_IN_MATCH": OrderState.EXPIRED,
}
NO_REASON = "NONE"


class BinancePort(CcxtPort):
    """See VenuePort."""

    async def submit(self, ticket: Ticket) -> Outcome:
        if refused := CARD.refusal(ticket):
            return refused
        params = {**order_params(ticket), "newClientOrderId": ticket.client_order_id, "newOrderRespType": "FULL"}

        def read(answer: Any) -> Done:
            return placed(answer, ticket.client_order_id)

        return await self._command(Use.ORDER, read, "private_post_order", params)

    async def cancel(self, instrument_id: str, client_order_id: str, venue_order_id: str = "") -> Outcome:
        order_id = venue_order_id.rpartition("-")[2]
        named = {"orderId": order_id} if order_id else {"origClientOrderId": client_order_id}
        params = {"symbol": symbol_of(instrument_id), **named}

        def read(answer: Any) -> Done:
            return Done(order=canceled_of(answer, client_order_id))

        return await self._command(Use.CANCEL, read, "private_delete_order", params)

    async def replace(self, working: VenueOrder, ticket: Ticket) -> Outcome:
        """First the cancel, then the order, which is not tried where the cancel fails.

        An order that has traded is not replaced: as much again could trade before the cancel, and would be bought twice.
        """
        if refused := CARD.change_refusal(working, ticket):
            return refused
        if ticket.client_order_id == working.client_order_id:
            return Refused(code=NOT_NATIVE, words=f"{VENUE} replaces an order by one with another id")
        params = {
            **order_params(ticket),
            "cancelReplaceMode": "STOP_ON_FAILURE",
            "cancelRestrictions": "ONLY_NEW",
            "cancelOrigClientOrderId": working.client_order_id,
            "newClientOrderId": ticket.client_order_id,
            "newOrderRespType": "FULL",
        }

        def read(answer: Any) -> Done:
            return placed(answer["newOrderResponse"], ticket.client_order_id)

        return await self._command(Use.ORDER, read, "private_post_order_cancelreplace", params)

    async def _judged(self, said: Answered) -> Outcome:
        """Of a replacement both halves are answered by themselves."""
        if said.code == WRONG_TIME:
            await self._learn_time()
        if said.code not in {"-2021", "-2022"} or not isinstance(said.data, dict):
            return await super()._judged(said)
        ended = None
        half = said.data.get("cancelResponse")
        if said.code == "-2021":
            if said.data.get("cancelResult") != "SUCCESS" or said.data.get("newOrderResult") != "FAILURE":
                return Unknown(why=str(said))
            ended, half = canceled_of(half, ""), said.data.get("newOrderResponse")
        elif said.data.get("newOrderResult") != "NOT_ATTEMPTED":
            return Unknown(why=str(said))
        code, words = self.said(400, half) or ("", "")
        # Only what is in so many words not there is refused: also one order too many, as the first is gone.
        inner = await super()._judged(Answered(400, code, words, said.retry_after_seconds))
        return inner if isinstance(inner, Unknown) else Refused(code=code, words=words, ended=ended)

    async def _learn_time(self) -> None:
        """So that the next request has the venue's time; where it does not say, the next one is refused as this one was."""
        with suppress(Answered, NotAnswered, *MALFORMED):
            answer = await self._ask(Use.ORDER, "public_get_time", {})
            self._exchange.options["timeDifference"] = self._exchange.milliseconds() - int(answer["serverTime"])

    async def open_orders(self, instrument_id: str = "") -> Sequence[VenueOrder]:
        asked = {"symbol": symbol_of(instrument_id)} if instrument_id else {}
        return await self._question(
            lambda answer: [order_of(row) for row in rows(answer)], "private_get_openorders", asked
        )

    async def order_by_client_id(self, client_order_id: str, instrument_id: str) -> VenueOrder | None:
        params = {"symbol": symbol_of(instrument_id), "origClientOrderId": client_order_id}
        try:
            return await self._question(lambda answer: order_of(answer, client_order_id), "private_get_order", params)
        except VenueRefused as refused:
            if refused.code == ORDER_NOT_FOUND:
                return None
            raise

    async def fills_since(self, cursor: str, instrument_ids: Sequence[str]) -> FillPage:
        """The cursor has the last trade's id of each symbol."""
        if len(instrument_ids) > INSTRUMENTS_MAX:
            raise ValueError(f"fills of more than {INSTRUMENTS_MAX} instruments at once")
        reached: dict[str, int] = json.loads(cursor) if cursor else {}
        fills: list[VenueFill] = []
        is_last = True
        for symbol in map(symbol_of, instrument_ids):
            params = {"symbol": symbol, "fromId": reached.get(symbol, 0) + 1, "limit": PAGE_FILLS}
            found = await self._question(
                lambda answer: [(int(row["id"]), fill_of(row)) for row in rows(answer)], "private_get_mytrades", params
            )
            fills += [fill for _, fill in found]
            reached[symbol] = max((trade_id for trade_id, _ in found), default=reached.get(symbol, 0))
            is_last = is_last and len(found) < PAGE_FILLS
        return FillPage(fills=tuple(fills), cursor=json.dumps(reached, sort_keys=True), is_last=is_last)

    async def balances(self) -> dict[str, Balance]:
        return await self._question(balances_of, "private_get_account", {"omitZeroBalances": "true"})

    # What it says.

    def said(self, status: int, response: Any) -> tuple[str, str] | None:
        if not isinstance(response, dict) or "code" not in response:
            return None
        return str(response["code"]), str(response.get("msg", ""))

    def verdict(self, said: Answered) -> Verdict:
        if said.status in {418, 429}:
            return Verdict.NOT_NOW
        if said.status >= 500:
            return Verdict.UNKNOWN
        if said.code in NOT_NOW:
            return Verdict.NOT_NOW
        if said.code in REFUSED and DUPLICATE not in said.words.lower():
            return Verdict.REFUSED
        return Verdict.UNKNOWN

    def is_reached(self, said: Answered) -> bool:
        return said.code == "-2010" and WOULD_TRIGGER in said.words.lower()

    def is_of_address(self, said: Answered) -> bool:
        return said.code not in OF_ACCOUNT

    # Its stream.

    async def subscription(self) -> tuple[str, dict[str, Any]]:
        self._take_key()
        try:
            signed = self._exchange.sign_params({"recvWindow": WINDOW_MILLISECONDS})
        finally:
            self._leave_key()
        subscription = {"id": "1", "method": "userDataStream.subscribe.signature", "params": signed}
        return self._exchange.urls["api"]["ws"]["ws-api"]["spot"], subscription

    def is_subscribed(self, message: Any) -> bool:
        if message.get("id") != "1":
            return False
        if message.get("status") != "200":
            error = message.get("error") or {}
            raise StreamLost(f"it is not subscribed to: {error.get('code')} {error.get('msg')}")
        return True

    async def told(self, message: Any) -> list[Told]:
        event = message.get("event", message)
        match event.get("e"):
            case "executionReport":
                return [told_of(event)]
            case "eventStreamTerminated" | "serverShutdown":
                raise StreamLost(str(event["e"]))
            case _:
                return []


# What is asked for.


def symbol_of(instrument_id: str) -> str:
    venue, _, symbol = instrument_id.partition(":")
    if venue != VENUE or not symbol:
        raise ValueError(f"{instrument_id} is not traded at {VENUE}")
    return symbol


def order_params(ticket: Ticket) -> dict[str, str]:
    """A ticket that is not refused, in Binance's words, but for its id."""
    params = {
        "symbol": symbol_of(ticket.instrument_id),
        "side": ticket.side.name,
        "type": type_of(ticket),
        "quantity": plain(ticket.quantity),
    }
    if ticket.limit_price is not None:
        params["price"] = plain(ticket.limit_price)
        if not ticket.post_only:
            params["timeInForce"] = ticket.time_in_force.name
    if ticket.stop_price is not None:
        params["stopPrice"] = plain(ticket.stop_price)
    if ticket.trail_fraction is not None:
        params["trailingDelta"] = plain(ticket.trail_fraction / native.BASIS_POINT)
    return params


def type_of(ticket: Ticket) -> str:
    match ticket.order_type:
        case OrderType.LIMIT if ticket.post_only:
            return "LIMIT_MAKER"
        case OrderType.STOP | OrderType.TRAILING_STOP:
            return "STOP_LOSS"
        case OrderType.STOP_LIMIT:
            return "STOP_LOSS_LIMIT"
        case _:
            return ticket.order_type.name


# What is answered. Each raises one of MALFORMED for what is not in its form.


def rows(answer: Any) -> list[Any]:
    if not isinstance(answer, list):
        raise TypeError("the answer is no list")
    return answer


def order_of(row: Mapping[str, Any], client_order_id: str = "", time: str = "updateTime") -> VenueOrder:
    """Raises ValueError for another order than was asked for."""
    found = VenueOrder(
        client_order_id=row["clientOrderId"],
        venue_order_id=order_id_of(row["symbol"], row["orderId"]),
        instrument_id=f"{VENUE}:{row['symbol']}",
        side=Side[row["side"]],
        state=STATES[row["status"]],
        quantity=exact(row["origQty"]),
        filled_quantity=exact(row["executedQty"]),
        limit_price=exact_or_none(row["price"]),
        stop_price=exact_or_none(row.get("stopPrice")),
        time_ns=int(row[time]) * MILLISECOND_NS,
    )
    if client_order_id and found.client_order_id != client_order_id:
        raise ValueError("the answer is about another order")
    return found


def placed(answer: Mapping[str, Any], client_order_id: str) -> Done:
    """The order, and what it took at once."""
    order = order_of(answer, client_order_id, "transactTime")
    fills = tuple(
        VenueFill(
            venue_fill_id=fill_id(fill["tradeId"], order.venue_order_id),
            venue_order_id=order.venue_order_id,
            client_order_id=client_order_id,
            instrument_id=order.instrument_id,
            side=order.side,
            price=exact(fill["price"]),
            quantity=exact(fill["qty"]),
            fee=exact(fill["commission"]),
            fee_asset=fill["commissionAsset"],
            maker=False,
            time_ns=order.time_ns,
        )
        for fill in answer["fills"]
    )
    return Done(order=order, fills=fills)


def canceled_of(answer: Any, client_order_id: str) -> VenueOrder:
    """The cancel has an id of its own."""
    return order_of({**answer, "clientOrderId": answer["origClientOrderId"]}, client_order_id, "transactTime")


def fill_of(row: Mapping[str, Any]) -> VenueFill:
    venue_order_id = order_id_of(row["symbol"], row["orderId"])
    return VenueFill(
        venue_fill_id=fill_id(row["id"], venue_order_id),
        venue_order_id=venue_order_id,
        client_order_id="",
        instrument_id=f"{VENUE}:{row['symbol']}",
        side=Side.BUY if flag(row["isBuyer"]) else Side.SELL,
        price=exact(row["price"]),
        quantity=exact(row["qty"]),
        fee=exact(row["commission"]),
        fee_asset=row["commissionAsset"],
        maker=flag(row["isMaker"]),
        time_ns=int(row["time"]) * MILLISECOND_NS,
    )


def told_of(event: Mapping[str, Any]) -> Told:
    # A cancel and a replacement have ids of their own, and say the order's as the original one.
    client_order_id = event["C"] or event["c"]
    state, time_ns = STATES[event["X"]], int(event["T"]) * MILLISECOND_NS
    venue_order_id = order_id_of(event["s"], event["i"])
    fill = None
    if event["x"] == "TRADE":
        fill = VenueFill(
            venue_fill_id=fill_id(event["t"], venue_order_id),
            venue_order_id=venue_order_id,
            client_order_id=client_order_id,
            instrument_id=f"{VENUE}:{event['s']}",
            side=Side[event["S"]],
            price=exact(event["L"]),
            quantity=exact(event["l"]),
            fee=exact(event["n"]),
            fee_asset=event["N"] or "",
            maker=flag(event["m"]),
            time_ns=time_ns,
        )
    reasons = [reason for reason in (event.get("r"), event.get("eR")) if reason and reason != NO_REASON]
    return Told(
        client_order_id=client_order_id,
        venue_order_id=venue_order_id,
        state=state,
        time_ns=time_ns,
        fill=fill,
        reason=" ".join(reasons),
    )


def order_id_of(symbol: str, order_id: str) -> str:
    """Orders are counted by symbol: an account may have two of one number."""
    return f"{symbol}-{int(order_id)}"


def fill_id(trade_id: str, venue_order_id: str) -> str:
    """A trade's id is one symbol's, and both sides' where an account has traded with itself."""
    symbol, _, order_id = venue_order_id.rpartition("-")
    return f"{symbol}-{int(trade_id)}-{order_id}"


def flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("neither true nor false")
    return value


def balances_of(answer: Any) -> dict[str, Balance]:
    return {
        row["asset"]: Balance(free=exact(row["free"]), locked=exact(row["locked"])) for row in rows(answer["balances"])
    }
