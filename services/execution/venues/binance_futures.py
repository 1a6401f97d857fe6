"""Binance's USDⓈ-M perpetual futures as a port: of accounts in one-way mode, cross margin and single-asset mode.

Orders that wait for a trigger are kept by a service of their own there, under ids of their own; what one becomes is an order
like any other, which keeps our id and gets another of Binance's. Fills name their order by that alone, so it is asked for.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from decimal import Decimal
from typing import Any, ClassVar, TypeVar

import aiohttp
import structlog

from libs import native
from libs.bus.budget import Use
from libs.matching.orders import Side
from libs.money import plain
from libs.native import PERPETUAL, OrderType
from libs.store.background import end
from services.execution.domain import Funding, Position
from services.execution.venues.binance import (
    AHEAD_SECONDS,
    LEEWAY_SECONDS,
    NO_REASON,
    ORDER_NOT_FOUND,
    VENUE,
    WINDOW_MILLISECONDS,
    WRONG_TIME,
    fill_id,
    flag,
    order_id_of,
    rows,
)
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
    WAITS,
    Balance,
    Card,
    Done,
    FillPage,
    FundingPage,
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

EXCHANGE = "BINANCEUSDM"
ORDER_COST = 4.0
PAGE_FILLS = 1_000
NAMED_MAX = 50
"""Orders of one page of fills that are asked for by what id they were placed: the newest, as older ones are told by Binance's own."""
NAMES_MAX = 10_000
"""Of those that are remembered."""
PAGE_FUNDING = 1_000
FUNDING_MILLISECONDS = 7 * 86_400_000
"""So much of the record of funding is asked for at once."""
LATE_MILLISECONDS = 3_600_000
"""An entry may come onto the record so much later than another with its time."""
KEEP_SECONDS = 1_200.0
"""So often a stream's key is kept, which is valid for an hour."""
KEEP_AGAIN_SECONDS = 60.0
SYMBOLS_NAMED_MAX = 5
"""Of those that are set up in another way, so many are named."""

CONDITIONAL: Mapping[OrderType, str] = {
    OrderType.STOP: "STOP_MARKET",
    OrderType.STOP_LIMIT: "STOP",
    OrderType.TAKE_PROFIT: "TAKE_PROFIT_MARKET",
    OrderType.TAKE_PROFIT_LIMIT: "TAKE_PROFIT",
    OrderType.TRAILING_STOP: "TRAILING_STOP_MARKET",
}
CARD = Card(
    **native.BINANCE_PERPETUALS.facts,
    is_proved=True,
    replacing=Replacing.AMENDS,
    has_stream=True,
    validity_seconds=WINDOW_MILLISECONDS / 1_000 + AHEAD_SECONDS + LEEWAY_SECONDS,
    perpetuals=True,
    exchange=EXCHANGE,
)
MANNER = Manner(
    options={"recvWindow": WINDOW_MILLISECONDS},
    rest_paths={"fapiPublic": "/fapi/v1", "fapiPrivate": "/fapi/v1", "fapiPrivateV3": "/fapi/v3"},
    stream_paths={"future": "/ws"},
)

NOT_OPEN, AS_ASKED_ALREADY, WRONG_TIME_AT_ENGINE = "-2011", "-5027", "-5028"
# What Binance says of a request that it did not take, by its code. Every other code, and each that comes with a status of
# 500 or more, leaves it open: above all -1000, -1001, -1006, -1007 and -1008, and -4116, by which an order of that id is there.
REFUSED = frozenset(
    {
        "-1002",  # not authorized
        "-1013",  # the message is invalid
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
        "-1108",  # no such asset
        "-1109",  # no such account
        "-1110",  # no such type of symbol
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
        "-1125",  # no such listen key
        "-1128",  # optional parameters do not go together
        "-1130",  # a parameter is invalid
        "-1136",  # no such form of an answer
        "-2010",  # the order was rejected
        NOT_OPEN,
        ORDER_NOT_FOUND,
        "-2014",  # the key has no such form
        "-2015",  # the key is invalid, or may not do this from here
        "-2016",  # no trading window
        "-2017",  # the key is locked
        "-2018",  # the balance is insufficient
        "-2019",  # the margin is insufficient
        "-2020",  # it cannot be filled
        "-2021",  # it would trigger at once
        "-2022",  # it would not reduce
        "-2023",  # the account is being liquidated
        "-2024",  # the position is not sufficient
        "-2025",  # too many orders are open
        "-2026",  # no such order may reduce only
        "-2027",  # the position would be too large for its leverage
        "-2028",  # the leverage is smaller than is permitted
        "-4001",  # the price is below zero
        "-4002",  # the price is above its maximum
        "-4003",  # the quantity is not above zero
        "-4004",  # the quantity is below its minimum
        "-4005",  # the quantity is above its maximum
        "-4006",  # the stop price is below zero
        "-4007",  # the stop price is above its maximum
        "-4013",  # the price is below its minimum
        "-4014",  # the price is no multiple of its tick
        "-4015",  # the client order id is too long
        "-4016",  # the price is too far above the market
        "-4023",  # the quantity is no multiple of its step
        "-4024",  # the price is too far below the market
        "-4028",  # the leverage is not valid
        "-4029",  # the price is too precise
        "-4030",  # the quantity is too precise
        "-4045",  # too many stops are open
        "-4061",  # the account is in hedge mode
        "-4118",  # it may reduce only, and others do already
        "-4120",  # orders of this type are taken elsewhere
        "-4131",  # the best price is too far from the market
        "-4138",  # an order of this type may not reduce only
        "-4140",  # nothing may be opened in the symbol now
        "-4141",  # the symbol is closed
        "-4142",  # it would trigger at once
        "-4164",  # the notional is below its minimum
        "-4183",  # the price is above its limit
        "-4184",  # the price is below its limit
        "-4192",  # the account cools off
        "-4400",  # rules of trading were broken: it may only reduce
        "-4401",  # the same
        "-5021",  # all of it could not be filled at once
        "-5022",  # it would not rest
        "-5024",  # it cannot be changed without price or quantity
        "-5025",  # only limit orders are changed
        "-5026",  # it was changed too often
        AS_ASKED_ALREADY,
    }
)
WOULD_TRIGGER = frozenset({"-2021", "-4142"})
"""Of those: its stop is reached already."""
# And of one that it did not take, and would another time.
NOT_NOW = frozenset(
    {
        "-1003",  # too many requests
        "-1015",  # too many orders
        WRONG_TIME,  # the timestamp is outside of the window
        WRONG_TIME_AT_ENGINE,  # the same, once it came to where orders are matched
    }
)
OF_ACCOUNT = NOT_NOW - {"-1003"}
"""Of those, what one account did: the others go on."""

STATES: Mapping[str, OrderState] = {
    "NEW": OrderState.WORKING,
    "PARTIALLY_FILLED": OrderState.WORKING,
    "NEW_INSURANCE": OrderState.WORKING,
    "NEW_ADL": OrderState.WORKING,
    "FILLED": OrderState.FILLED,
    "CANCELED": OrderState.CANCELED,
    "REJECTED": OrderState.REJECTED,
    "EXPIRED": OrderState.EXPIRED,
    "EXPIRED_IN_MATCH": OrderState.EXPIRED,
}
WAITING_STATES: Mapping[str, OrderState] = {
    "NEW": OrderState.WORKING,
    "TRIGGERING": OrderState.WORKING,
    "TRIGGERED": OrderState.WORKING,
    "CANCELED": OrderState.CANCELED,
    "REJECTED": OrderState.REJECTED,
    "EXPIRED": OrderState.EXPIRED,
}
"""Of an order that waits for its trigger; of one that is FINISHED what it became says how."""
TRADED = frozenset({"TRADE", "CALCULATED"})
EXPIRED_BY: Mapping[str, str] = {
    "1": "it would have traded with another of the account",
    "2": "ioc",
    "3": "it would have traded with another of the account",
    "4": "another order that reduces took its place",
    "5": "the account was liquidated",
    "6": "what it depended on is gone",
    "7": "the contract was settled",
    "8": "a stop took its place",
}
"""Why an order ended, by the number that Binance gives."""
FORCED: Mapping[str, str] = {
    "autoclose-": "Binance liquidates a position with it",
    "adl_autoclose": "Binance takes a position off with it, as somebody else's liquidation finds nobody (ADL)",
    "settlement_autoclose-": "Binance settles a contract with it that ends",
}
"""By the beginning of the id of an order that Binance itself places."""

T = TypeVar("T")
log = structlog.get_logger(__name__)


class BinanceFuturesPort(CcxtPort):
    """See VenuePort."""

    COSTS: ClassVar[Mapping[str, float]] = {
        # As ccxt takes other orders: so many keep within what is allowed of orders, too.
        "fapiprivate_post_algoorder": ORDER_COST,
        "fapiprivate_put_order": ORDER_COST,
        "fapiprivatev3_get_balance": 5.0,
        "fapiprivatev3_get_positionrisk": 5.0,
    }

    def __init__(self, *of: Any) -> None:
        super().__init__(*of)
        self._names: dict[str, str] = {}
        """Our ids, or others', by Binance's."""

    async def submit(self, ticket: Ticket) -> Outcome:
        if refused := CARD.refusal(ticket):
            return refused
        if ticket.order_type in CONDITIONAL:
            params, read = {**waiting_params(ticket), "clientAlgoId": ticket.client_order_id}, waiting_of
            method = "fapiprivate_post_algoorder"
        else:
            params, read = {**order_params(ticket), "newClientOrderId": ticket.client_order_id}, order_of
            params["newOrderRespType"] = "RESULT"
            method = "fapiprivate_post_order"

        def placed(answer: Any) -> Done:
            return Done(order=read(answer, ticket.client_order_id))

        return await self._command(Use.ORDER, placed, method, params)

    async def cancel(self, instrument_id: str, client_order_id: str, venue_order_id: str = "") -> Outcome:
        """Where it is not known which of both it is, or it may have been triggered meanwhile, either is tried."""
        symbol, waits = symbol_of(instrument_id), venue_order_id.endswith(WAITS)
        number = number_of(venue_order_id)
        outcome = await (
            self._cancel_waiting(number, client_order_id) if waits else self._cancel(symbol, number, client_order_id)
        )
        is_sure = (venue_order_id and not waits) or not client_order_id
        if is_sure or not (isinstance(outcome, Refused) and outcome.code in {NOT_OPEN, ORDER_NOT_FOUND}):
            return outcome
        other = await (
            self._cancel(symbol, "", client_order_id) if waits else self._cancel_waiting("", client_order_id)
        )
        return outcome if isinstance(other, Refused) else other

    async def _cancel(self, symbol: str, number: str, client_order_id: str) -> Outcome:
        named = {"orderId": number} if number else {"origClientOrderId": client_order_id}

        def read(answer: Any) -> Done:
            return Done(order=order_of(answer, client_order_id))

        return await self._command(Use.CANCEL, read, "fapiprivate_delete_order", {"symbol": symbol, **named})

    async def _cancel_waiting(self, number: str, client_order_id: str) -> Outcome:
        """Its answer says of the order only which it is."""
        named = {"algoId": number} if number else {"clientAlgoId": client_order_id}

        def read(answer: Any) -> Done:
            if client_order_id and answer["clientAlgoId"] != client_order_id:
                raise ValueError("the answer is about another order")
            return Done()

        return await self._command(Use.CANCEL, read, "fapiprivate_delete_algoorder", named)

    async def replace(self, working: VenueOrder, ticket: Ticket) -> Outcome:
        """Of limit orders alone; the quantity is that of all of it, and what has traded by then is part of it."""
        if refused := CARD.change_refusal(working, ticket):
            return refused
        if working.venue_order_id.endswith(WAITS):
            return Refused(code=NOT_NATIVE, words=f"{VENUE} changes limit orders of futures alone")
        if ticket.client_order_id != working.client_order_id or ticket.limit_price is None:
            return Refused(code=NOT_NATIVE, words=f"{VENUE} changes an order of futures under the id that it has")
        number = number_of(working.venue_order_id)
        params = {
            "symbol": symbol_of(ticket.instrument_id),
            "side": ticket.side.name,
            "quantity": plain(ticket.quantity),
            "price": plain(ticket.limit_price),
            **({"orderId": number} if number else {"origClientOrderId": working.client_order_id}),
        }

        def read(answer: Any) -> Done:
            return Done(order=order_of(answer, ticket.client_order_id))

        outcome = await self._command(Use.ORDER, read, "fapiprivate_put_order", params)
        if isinstance(outcome, Refused) and outcome.code == AS_ASKED_ALREADY:
            return Done()
        if isinstance(outcome, Refused) and outcome.code in {NOT_OPEN, ORDER_NOT_FOUND}:
            # What is put may be sent again below ccxt, after the first has changed the order and it has traded.
            return Unknown(why=outcome.words)
        return outcome

    async def _judged(self, said: Answered) -> Outcome:
        if said.code in {WRONG_TIME, WRONG_TIME_AT_ENGINE}:
            await self._learn_time()
        return await super()._judged(said)

    async def _learn_time(self) -> None:
        """So that the next request has the venue's time; where it does not say, the next one is refused as this one was."""
        with suppress(Answered, NotAnswered, *MALFORMED):
            answer = await self._ask(Use.ORDER, "fapipublic_get_time", {})
            self._exchange.options["timeDifference"] = self._exchange.milliseconds() - int(answer["serverTime"])

    async def open_orders(self, instrument_id: str = "") -> Sequence[VenueOrder]:
        """First those that wait: one that is triggered in between is among the others.

        One that closes whatever position there will be has no quantity, and is left out: what it trades is on record.
        """
        asked = {"symbol": symbol_of(instrument_id)} if instrument_id else {}
        waiting = await self._question(
            lambda answer: [waiting_of(row) for row in rows(answer) if is_waiting(row)],
            "fapiprivate_get_openalgoorders",
            asked,
        )
        others = await self._question(
            lambda answer: [order_of(row) for row in rows(answer)], "fapiprivate_get_openorders", asked
        )
        return [*waiting, *others]

    async def order_by_client_id(self, client_order_id: str, instrument_id: str) -> VenueOrder | None:
        """What a stop became, where it was triggered."""
        symbol = symbol_of(instrument_id)
        asked = {"symbol": symbol, "origClientOrderId": client_order_id}
        if found := await self._found(lambda row: order_of(row, client_order_id), "fapiprivate_get_order", asked):
            return found
        asked = {"clientAlgoId": client_order_id}
        waiting = await self._found(
            lambda row: (waiting_of(row, client_order_id), row.get("actualOrderId")), "fapiprivate_get_algoorder", asked
        )
        if waiting is None:
            return None
        order, number = waiting
        if number:
            asked = {"symbol": symbol, "orderId": number}
            if became := await self._found(order_of, "fapiprivate_get_order", asked):
                return replace(became, client_order_id=client_order_id)
        return order

    async def _found(self, read: Callable[[Any], T], method: str, params: Mapping[str, str]) -> T | None:
        """None where there is no such order on record."""
        try:
            return await self._question(read, method, params)
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
                lambda answer: [(int(row["id"]), fill_of(row)) for row in rows(answer)],
                "fapiprivate_get_usertrades",
                params,
            )
            fills += await self._named(symbol, [fill for _, fill in found])
            reached[symbol] = max((trade_id for trade_id, _ in found), default=reached.get(symbol, 0))
            is_last = is_last and len(found) < PAGE_FILLS
        return FillPage(fills=tuple(fills), cursor=json.dumps(reached, sort_keys=True), is_last=is_last)

    async def _named(self, symbol: str, fills: list[VenueFill]) -> list[VenueFill]:
        """With the ids under which their orders were placed: what a stop became has an id of Binance's that nobody was told."""
        newest = list(dict.fromkeys(fill.venue_order_id for fill in reversed(fills)))[:NAMED_MAX]
        for venue_order_id in newest:
            if venue_order_id not in self._names:
                asked = {"symbol": symbol, "orderId": number_of(venue_order_id)}
                if order := await self._found(order_of, "fapiprivate_get_order", asked):
                    self._names[venue_order_id] = order.client_order_id
        named = [
            replace(fill, client_order_id=name, forced=forced_by(name))
            for fill in fills
            for name in [self._names.get(fill.venue_order_id, "")]
        ]
        for forgotten in list(self._names)[: max(0, len(self._names) - NAMES_MAX)]:
            del self._names[forgotten]
        return named

    async def balances(self) -> dict[str, Balance]:
        return await self._question(balances_of, "fapiprivatev3_get_balance", {})

    async def positions(self) -> dict[str, Position]:
        return await self._question(positions_of, "fapiprivatev3_get_positionrisk", {})

    async def funding_since(self, cursor: str, begin_time_ns: int) -> FundingPage:
        """The cursor has the time from which the record is asked for, and the page of what it has from then on.

        An hour of what was read before is asked for again: entries of one time come onto the record one after the other.
        """
        asked = json.loads(cursor) if cursor else {"time": begin_time_ns // MILLISECOND_NS, "page": 1}
        begin, page = int(asked["time"]), int(asked["page"])
        until = begin + FUNDING_MILLISECONDS - 1
        is_open = until >= time.time_ns() // MILLISECOND_NS
        params = {
            "incomeType": "FUNDING_FEE",
            "startTime": begin,
            **({} if is_open else {"endTime": until}),
            "page": page,
            "limit": PAGE_FUNDING,
        }
        found = await self._question(
            lambda answer: [funding_of(row) for row in rows(answer)], "fapiprivate_get_income", params
        )
        if len(found) >= PAGE_FUNDING:
            onwards = {"time": begin, "page": page + 1}
        elif is_open:
            newest = max((entry.time_ns // MILLISECOND_NS for entry in found), default=begin)
            onwards = {"time": max(begin, newest - LATE_MILLISECONDS), "page": 1}
        else:
            onwards = {"time": until + 1, "page": 1}
        found.sort(key=lambda entry: (entry.time_ns, entry.venue_id))
        is_last = is_open and len(found) < PAGE_FUNDING
        return FundingPage(entries=tuple(found), cursor=json.dumps(onwards), is_last=is_last)

    async def unfit(self) -> str:
        """Of an account that holds positions in two ways at once, or with margin that is not of one asset, nothing here is true."""
        hedges, mixes = await self._question(
            lambda answer: (flag(answer["dualSidePosition"]), flag(answer["multiAssetsMargin"])),
            "fapiprivate_get_accountconfig",
            {},
        )
        if hedges:
            return f"the account at {VENUE} is in hedge mode: set its position mode to one-way"
        if mixes:
            return f"the account at {VENUE} is in multi-assets mode: set its asset mode to single-asset"
        isolated = await self._question(
            lambda answer: [row["symbol"] for row in rows(answer) if row["marginType"] != "CROSSED"],
            "fapiprivate_get_symbolconfig",
            {},
        )
        if isolated:
            more = f" and {len(isolated) - SYMBOLS_NAMED_MAX} more" if len(isolated) > SYMBOLS_NAMED_MAX else ""
            named = ", ".join(sorted(isolated)[:SYMBOLS_NAMED_MAX])
            return f"the account at {VENUE} has isolated margin for {named}{more}: set it to cross margin"
        return ""

    # What it says.

    def said(self, status: int, response: Any) -> tuple[str, str] | None:
        """Some of what it has done is answered by code and words, too, with a code of 200."""
        if not isinstance(response, dict) or "code" not in response or str(response["code"]) == "200":
            return None
        return str(response["code"]), str(response.get("msg", ""))

    def verdict(self, said: Answered) -> Verdict:
        if said.status in {418, 429}:
            return Verdict.NOT_NOW
        if said.status >= 500:
            return Verdict.UNKNOWN
        if said.code in NOT_NOW:
            return Verdict.NOT_NOW
        return Verdict.REFUSED if said.code in REFUSED else Verdict.UNKNOWN

    def is_reached(self, said: Answered) -> bool:
        return said.code in WOULD_TRIGGER

    def is_of_address(self, said: Answered) -> bool:
        return said.code not in OF_ACCOUNT

    # Its stream.

    async def subscription(self) -> tuple[str, dict[str, Any] | None]:
        try:
            answer = await self._ask(Use.ORDER, "fapiprivate_post_listenkey", {})
        except Answered as said:
            await self._judged(said)
            raise
        listen_key = answer["listenKey"]
        if not isinstance(listen_key, str) or not listen_key.isalnum():
            raise StreamLost("it has no address")
        return self._exchange.get_private_ws_url("future", listen_key), None

    def is_subscribed(self, message: Any) -> bool:
        return True

    @asynccontextmanager
    async def kept(self, following: aiohttp.ClientWebSocketResponse) -> AsyncIterator[None]:
        keeping = asyncio.create_task(self._keep(following), name="keeping a stream's key")
        try:
            yield
        finally:
            await end([keeping])

    async def _keep(self, following: aiohttp.ClientWebSocketResponse) -> None:
        """Until it is cancelled; ends the stream where its key is gone, as nothing more would be told."""
        seconds = KEEP_SECONDS
        while True:
            await asyncio.sleep(seconds)
            seconds = KEEP_SECONDS
            try:
                await self._ask(Use.ORDER, "fapiprivate_put_listenkey", {})
            except Answered as said:
                if self.verdict(said) is Verdict.REFUSED:
                    log.info("a stream's key is gone", venue=self.card.venue, why=str(said))
                    await following.close()
                    return
                seconds = KEEP_AGAIN_SECONDS
            except NotAnswered:
                seconds = KEEP_AGAIN_SECONDS

    async def told(self, message: Any) -> list[Told]:
        event = message.get("data", message)
        match event.get("e"):
            case "ORDER_TRADE_UPDATE":
                return [told_of(event["o"])]
            case "ALGO_UPDATE":
                return waiting_told_of(event["o"], int(event["T"]) * MILLISECOND_NS)
            case "listenKeyExpired":
                raise StreamLost(str(event["e"]))
            case _:
                return []


# What is asked for.


def symbol_of(instrument_id: str) -> str:
    """Raises ValueError for what is no future."""
    venue, _, symbol = instrument_id.partition(":")
    is_dated = "_" in symbol
    if venue != VENUE or not symbol.removesuffix(PERPETUAL) or symbol.endswith(PERPETUAL) == is_dated:
        raise ValueError(f"{instrument_id} is no future at {VENUE}")
    return symbol.removesuffix(PERPETUAL)


def instrument_of(symbol: str) -> str:
    """Those that end at a date have it after an underscore."""
    return f"{VENUE}:{symbol}" if "_" in symbol else f"{VENUE}:{symbol}{PERPETUAL}"


def order_params(ticket: Ticket) -> dict[str, str]:
    """A ticket that is not refused and waits for no trigger, in Binance's words, but for its id."""
    params = {**common_params(ticket), "type": ticket.order_type.name}
    if ticket.limit_price is not None:
        params["timeInForce"] = "GTX" if ticket.post_only else ticket.time_in_force.name
    return params


def waiting_params(ticket: Ticket) -> dict[str, str]:
    """The same of one that waits for its trigger: the last price is what has to reach it."""
    params = {
        **common_params(ticket),
        "algoType": "CONDITIONAL",
        "type": CONDITIONAL[ticket.order_type],
        "timeInForce": ticket.time_in_force.name,
        "workingType": "CONTRACT_PRICE",
    }
    if ticket.stop_price is not None:
        params["triggerPrice"] = plain(ticket.stop_price)
    if ticket.trail_fraction is not None:
        params["callbackRate"] = plain(ticket.trail_fraction * 100)
    return params


def common_params(ticket: Ticket) -> dict[str, str]:
    return {
        "symbol": symbol_of(ticket.instrument_id),
        "side": ticket.side.name,
        "quantity": plain(ticket.quantity),
        **({} if ticket.limit_price is None else {"price": plain(ticket.limit_price)}),
        **({"reduceOnly": "true"} if ticket.reduce_only else {}),
    }


def number_of(venue_order_id: str) -> str:
    """Binance's own of an order, or of one that waits."""
    return venue_order_id.removesuffix(WAITS).rpartition("-")[2]


def waiting_id_of(symbol: str, number: str) -> str:
    return f"{order_id_of(symbol, number)}{WAITS}"


def forced_by(client_order_id: str) -> str:
    return next((words for beginning, words in FORCED.items() if client_order_id.startswith(beginning)), "")


# What is answered. Each raises one of MALFORMED for what is not in its form.


def order_of(row: Mapping[str, Any], client_order_id: str = "") -> VenueOrder:
    """Raises ValueError for another order than was asked for."""
    found = VenueOrder(
        client_order_id=row["clientOrderId"],
        venue_order_id=order_id_of(row["symbol"], row["orderId"]),
        instrument_id=instrument_of(row["symbol"]),
        side=Side[row["side"]],
        state=STATES[row["status"]],
        quantity=exact(row["origQty"]),
        filled_quantity=exact(row["executedQty"]),
        limit_price=exact_or_none(row["price"]),
        stop_price=exact_or_none(row.get("stopPrice")),
        time_ns=int(row["updateTime"]) * MILLISECOND_NS,
        forced=forced_by(row["clientOrderId"]),
    )
    if client_order_id and found.client_order_id != client_order_id:
        raise ValueError("the answer is about another order")
    return found


def is_waiting(row: Mapping[str, Any]) -> bool:
    return not row.get("actualOrderId") and str(row.get("closePosition")).lower() != "true"


def waiting_of(row: Mapping[str, Any], client_order_id: str = "") -> VenueOrder:
    """An order that waits for its trigger, or did; what it became tells of its fills."""
    quantity, filled_quantity = exact(row["quantity"]), Decimal(0)
    if row["algoStatus"] == "FINISHED":
        filled_quantity = exact_or_none(row.get("actualQty")) or Decimal(0)
        state = OrderState.FILLED if filled_quantity >= quantity else OrderState.CANCELED
    else:
        state = WAITING_STATES[row["algoStatus"]]
    number = row.get("actualOrderId")
    found = VenueOrder(
        client_order_id=row["clientAlgoId"],
        venue_order_id=order_id_of(row["symbol"], number) if number else waiting_id_of(row["symbol"], row["algoId"]),
        instrument_id=instrument_of(row["symbol"]),
        side=Side[row["side"]],
        state=state,
        quantity=quantity,
        filled_quantity=filled_quantity,
        limit_price=exact_or_none(row.get("price")),
        stop_price=exact_or_none(row.get("triggerPrice")),
        time_ns=int(row["updateTime"]) * MILLISECOND_NS,
    )
    if client_order_id and found.client_order_id != client_order_id:
        raise ValueError("the answer is about another order")
    return found


def fill_of(row: Mapping[str, Any]) -> VenueFill:
    venue_order_id = order_id_of(row["symbol"], row["orderId"])
    return VenueFill(
        venue_fill_id=fill_id(row["id"], venue_order_id),
        venue_order_id=venue_order_id,
        client_order_id="",
        instrument_id=instrument_of(row["symbol"]),
        side=Side[row["side"]],
        price=exact(row["price"]),
        quantity=exact(row["qty"]),
        fee=exact(row["commission"]),
        fee_asset=row["commissionAsset"],
        maker=flag(row["maker"]),
        time_ns=int(row["time"]) * MILLISECOND_NS,
        realized_profit=exact(row["realizedPnl"]),
    )


def told_of(order: Mapping[str, Any]) -> Told:
    client_order_id, time_ns = order["c"], int(order["T"]) * MILLISECOND_NS
    venue_order_id = order_id_of(order["s"], order["i"])
    fill = None
    if order["x"] in TRADED and (quantity := exact(order["l"])):
        fill = VenueFill(
            venue_fill_id=fill_id(order["t"], venue_order_id),
            venue_order_id=venue_order_id,
            client_order_id=client_order_id,
            instrument_id=instrument_of(order["s"]),
            side=Side[order["S"]],
            price=exact(order["L"]),
            quantity=quantity,
            # Nothing is said where nothing is charged.
            fee=exact(order.get("n") or "0"),
            fee_asset=order.get("N") or "",
            maker=flag(order["m"]),
            time_ns=time_ns,
            realized_profit=exact(order["rp"]),
            forced=forced_by(client_order_id),
        )
    expired_by = str(order.get("er") or "0")
    return Told(
        client_order_id=client_order_id,
        venue_order_id=venue_order_id,
        state=STATES[order["X"]],
        time_ns=time_ns,
        fill=fill,
        reason="" if expired_by in {"0", NO_REASON} else EXPIRED_BY.get(expired_by, expired_by),
    )


def waiting_told_of(order: Mapping[str, Any], time_ns: int) -> list[Told]:
    """Nothing of what became of what it became: that is told by itself."""
    state, number = WAITING_STATES.get(order["X"]), order.get("ai")
    if state is None or (number and state is not OrderState.WORKING):
        return []
    venue_order_id = order_id_of(order["s"], number) if number else waiting_id_of(order["s"], order["aid"])
    return [
        Told(
            client_order_id=order["caid"],
            venue_order_id=venue_order_id,
            state=state,
            time_ns=time_ns,
            reason=str(order.get("rm") or ""),
        )
    ]


def balances_of(answer: Any) -> dict[str, Balance]:
    """What may be withdrawn counts profits that are not in the wallet yet; those are not in it here."""
    found: dict[str, Balance] = {}
    for row in rows(answer):
        total = exact(row["balance"])
        free = min(total, exact(row["availableBalance"]))
        if total:
            found[row["asset"]] = Balance(free=free, locked=total - free)
    return found


def positions_of(answer: Any) -> dict[str, Position]:
    """Raises ValueError for those of an account that holds them in two ways at once."""
    found: dict[str, Position] = {}
    for row in rows(answer):
        if row["positionSide"] != "BOTH":
            raise ValueError("a position of hedge mode")
        if quantity := exact(row["positionAmt"]):
            found[instrument_of(row["symbol"])] = Position(quantity=quantity, average_price=exact(row["entryPrice"]))
    return found


def funding_of(row: Mapping[str, Any]) -> Funding:
    if row["incomeType"] != "FUNDING_FEE":
        raise ValueError("another kind of income")
    return Funding(
        venue_id=f"{row['symbol']}-{int(row['tranId'])}",
        instrument_id=instrument_of(row["symbol"]),
        amount=exact(row["income"]),
        asset=row["asset"],
        time_ns=int(row["time"]) * MILLISECOND_NS,
    )
