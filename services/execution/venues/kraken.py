"""Kraken's spot market as a port.

It amends orders in place, its fills are one record of the whole account, and a request carries the time until which it may
become an order. Streams write numbers as numbers, and are read as they are written. Fees are asked for in the quote asset, in which the
record states them.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from libs import native
from libs.bus.budget import Use
from libs.matching.orders import Side
from libs.money import plain
from libs.native import OrderType
from services.execution.domain import venue_unavailable
from services.execution.venues.ccxt_port import (
    MILLISECOND_NS,
    SECOND_NS,
    Answered,
    CcxtPort,
    Manner,
    StreamLost,
    Verdict,
    exact,
    exact_or_none,
)
from services.execution.venues.port import (
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
    VenueFill,
    VenueOrder,
)

VENUE = "KRAKEN"
DEADLINE_SECONDS = 10
DEADLINE_SECONDS_MAX = 60.0
"""Kraken takes no deadline that is further away: whatever our clock says, this is the bound."""
LEEWAY_SECONDS = 5.0
PAGE_FILLS = 50
PAGES_MAX = 20
"""Of fills that were made within OVERLAP_SECONDS and are asked for together; also tries to see a page that does not move."""
OVERLAP_SECONDS = 10
"""Fills may come to be on record so long after others that are dated later."""
PAIRS_SECONDS = 60.0
"""At most so often it is asked what it lists."""
PAUSE_SECONDS = 5.0
PERCENT = Decimal(100)

CARD = Card(
    **native.KRAKEN.facts,
    is_proved=True,
    replacing=Replacing.AMENDS,
    has_stream=True,
    validity_seconds=DEADLINE_SECONDS_MAX + LEEWAY_SECONDS,
)
MANNER = Manner(rest_paths={"public": "", "private": ""}, stream_paths={"privateV2": "/v2"})

# The beginnings of what Kraken says of a request that it did not take. All else leaves it open: above all EService:Busy,
# EService:Unavailable, EService:Timeout, EService:Deadline elapsed, EGeneral:Internal error and EDatabase:Internal error.
REFUSED = (
    "EAPI:Bad request",
    "EAPI:Feature disabled",
    "EAPI:Invalid key",
    "EAPI:Invalid signature",
    "EAuth:Account temporary disabled",
    "EAuth:Account unconfirmed",
    "EGeneral:Invalid arguments",
    "EGeneral:Permission denied",
    "EOrder:Cannot open opposing position",
    "EOrder:Cannot open position",
    "EOrder:Cost minimum not met",
    "EOrder:Insufficient funds",
    "EOrder:Insufficient margin",
    "EOrder:Invalid order",
    "EOrder:Invalid price",
    "EOrder:Margin allowance exceeded",
    "EOrder:Margin level too low",
    "EOrder:Margin position size exceeded",
    "EOrder:Order minimum not met",
    "EOrder:Orders limit exceeded",
    "EOrder:Positions limit exceeded",
    "EOrder:Post only order",
    "EOrder:Scheduled orders limit exceeded",
    "EOrder:Tick size check failed",
    "EOrder:Trading agreement required",
    "EOrder:Unknown order",
    "EOrder:Unknown position",
    "EQuery:Invalid asset pair",
    "EQuery:Unknown asset",
    "EService:Market in cancel_only mode",
    "EService:Market in limit_only mode",
    "EService:Market in post_only mode",
    "ETrade:Locked",
    "ETrade:User Locked",
)
# And of one that it did not take, and would another time: after so many seconds.
NOT_NOW: Mapping[str, float] = {
    "EAPI:Invalid nonce": 0.1,  # another request of this key overtook it
    "EAPI:Rate limit exceeded": PAUSE_SECONDS,
    "EGeneral:Temporary lockout": 900.0,
    "EGeneral:Too many requests": PAUSE_SECONDS,
    "EOrder:Domain rate limit exceeded": PAUSE_SECONDS,
    "EOrder:Rate limit exceeded": PAUSE_SECONDS,
    "EService:Throttled": 15.0,
}
OF_ADDRESS = ("EGeneral:Too many requests", "EService:Throttled")
"""Of those, what our address did; the others are of one key."""
IDS = ("cl_ord_id", "uplicate")
"""Words by which a refusal says something of the id: there may be an order of it."""
JOINT = "; "

STATES: Mapping[str, OrderState] = {
    "pending": OrderState.WORKING,
    "open": OrderState.WORKING,
    "closed": OrderState.FILLED,
    "canceled": OrderState.CANCELED,
    "expired": OrderState.EXPIRED,
}
STREAM_STATES: Mapping[str, OrderState] = {
    "pending_new": OrderState.WORKING,
    "new": OrderState.WORKING,
    "partially_filled": OrderState.WORKING,
    "filled": OrderState.FILLED,
    "canceled": OrderState.CANCELED,
    "expired": OrderState.EXPIRED,
}
# Two assets that REST and streams call otherwise than everybody else.
NAMES: Mapping[str, str] = {"XBT": "BTC", "XDG": "DOGE"}


@dataclass(slots=True)
class Pairs:
    """What Kraken lists, for all ports of a process: its ids of pairs by our symbols, and ours by all of its names."""

    ids: Mapping[str, str] = field(default_factory=dict)
    symbols: Mapping[str, str] = field(default_factory=dict)
    quotes: Mapping[str, str] = field(default_factory=dict)
    """The quote asset, by our symbol."""
    asked_at: float | None = None
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)


class KrakenPort(CcxtPort):
    """See VenuePort."""

    def __init__(self, pairs: Pairs, *of: Any) -> None:
        super().__init__(*of)
        self._pairs = pairs
        self._last_nonce = 0
        self._exchange.nonce = self._nonce

    async def submit(self, ticket: Ticket) -> Outcome:
        if refused := CARD.refusal(ticket):
            return refused
        pair = await self._pair_to_trade(ticket.instrument_id)
        if not isinstance(pair, str):
            return pair
        params = {**order_params(ticket), "pair": pair, "cl_ord_id": ticket.client_order_id, "deadline": deadline()}
        return await self._command(Use.ORDER, placed, "private_post_addorder", params)

    async def cancel(self, instrument_id: str, client_order_id: str, venue_order_id: str = "") -> Outcome:
        params = {"txid": venue_order_id} if venue_order_id else {"cl_ord_id": client_order_id}
        return await self._command(Use.CANCEL, canceled, "private_post_cancelorder", params)

    async def replace(self, working: VenueOrder, ticket: Ticket) -> Outcome:
        """In place: the order keeps its fills, so that the new quantity is exact whatever trades meanwhile."""
        if refused := CARD.change_refusal(working, ticket):
            return refused
        if ticket.client_order_id != working.client_order_id:
            return Refused(code=NOT_NATIVE, words=f"{VENUE} amends an order under its own id")
        params = {"cl_ord_id": ticket.client_order_id, "order_qty": plain(ticket.quantity), "deadline": deadline()}
        if ticket.limit_price is not None:
            params["limit_price"] = plain(ticket.limit_price)
        if ticket.stop_price is not None:
            params["trigger_price"] = plain(ticket.stop_price)
        if ticket.post_only:
            params["post_only"] = "true"
        return await self._command(Use.ORDER, amended, "private_post_amendorder", params)

    async def open_orders(self, instrument_id: str = "") -> Sequence[VenueOrder]:
        """Of all: what Kraken is asked costs the same."""
        await self._know_pairs()
        return await self._question(lambda answer: self._orders(answer, "open"), "private_post_openorders", {})

    async def order_by_client_id(self, client_order_id: str, instrument_id: str) -> VenueOrder | None:
        # What is open may close between the two questions, and never the other way.
        await self._know_pairs()
        for method, kind in (("private_post_openorders", "open"), ("private_post_closedorders", "closed")):
            found = await self._question(
                lambda answer, kind=kind: self._orders(answer, kind), method, {"cl_ord_id": client_order_id}
            )
            mine = [order for order in found if order.client_order_id == client_order_id]
            if mine:
                return max(mine, key=lambda order: order.time_ns)
        return None

    async def fills_since(self, cursor: str, instrument_ids: Sequence[str]) -> FillPage:
        """Of all instruments. The cursor is the second of the last fill.

        Kraken tells the newest first, and counts from there: so the oldest page is asked for by how many there are, and
        again where that has changed meanwhile.
        """
        await self._know_pairs()
        reached = int(cursor or 0)
        params = {"start": str(reached - OVERLAP_SECONDS)} if cursor else {}
        fills: dict[str, VenueFill] = {}
        known_count, offset = -1, 0
        for _ in range(PAGES_MAX):
            asked = {**params, "ofs": str(offset)}
            count, page = await self._question(self._fills, "private_post_tradeshistory", asked)
            if count != known_count:
                known_count, offset = count, max(0, count - PAGE_FILLS)
                if offset:
                    continue
            fills |= {fill.venue_fill_id: fill for fill in page}
            newest = max((fill.time_ns // SECOND_NS for fill in fills.values()), default=reached)
            if not offset or newest > reached:
                ordered = sorted(fills.values(), key=lambda fill: (fill.time_ns, fill.venue_fill_id))
                return FillPage(fills=tuple(ordered), cursor=str(max(reached, newest)), is_last=not offset)
            offset = max(0, offset - PAGE_FILLS)
        raise venue_unavailable(VENUE)

    async def balances(self) -> dict[str, Balance]:
        def read(answer: Any) -> dict[str, Balance]:
            found: dict[str, Balance] = {}
            for name, row in answer["result"].items():
                asset, locked = self._exchange.safe_currency_code(name), exact(row["hold_trade"])
                known = found.get(asset, Balance(free=Decimal(0), locked=Decimal(0)))
                free = known.free + exact(row["balance"]) - locked
                found[asset] = Balance(free=free, locked=known.locked + locked)
            return found

        return await self._question(read, "private_post_balanceex", {})

    # What it lists.

    async def _know_pairs(self) -> None:
        """Asks once per process. Raises VenueUnavailable, VenueRefused."""
        if self._pairs.asked_at is None:
            await self._learn_pairs()

    async def _learn_pairs(self) -> None:
        async with self._pairs.asking:
            now = asyncio.get_running_loop().time()
            if self._pairs.asked_at is not None and now - self._pairs.asked_at < PAIRS_SECONDS:
                return
            told = await self._question(lambda answer: pairs_of(answer["result"]), "public_get_assetpairs", {})
            self._pairs.ids, self._pairs.symbols, self._pairs.quotes = told
            self._pairs.asked_at = now

    async def _pair_to_trade(self, instrument_id: str) -> str | Outcome:
        """Kraken's id of the pair; what becomes of an order where there is none, or where that is not known."""
        symbol = instrument_id.removeprefix(f"{VENUE}:")
        if symbol not in self._pairs.ids and (outcome := await self._beforehand(self._learn_pairs())):
            return outcome
        pair = self._pairs.ids.get(symbol)
        return pair or Refused(code=NOT_NATIVE, words=f"{VENUE} has no {symbol}")

    def _symbol(self, pair: str) -> str:
        """Ours; Kraken's own name of one that was not listed when it was asked."""
        return self._pairs.symbols.get(pair, pair.replace("/", ""))

    # What it says.

    def said(self, status: int, response: Any) -> tuple[str, str] | None:
        # What begins with W is a warning, and comes with a result.
        told = response.get("error") if isinstance(response, dict) else None
        errors = [str(error) for error in told or () if not str(error).startswith("W")]
        return (errors[0], JOINT.join(errors)) if errors else None

    def verdict(self, said: Answered) -> Verdict:
        if said.status == 429:
            return Verdict.NOT_NOW
        if said.status >= 400 or any(word in said.words for word in IDS):
            return Verdict.UNKNOWN
        errors = said.words.split(JOINT)
        if all(error.startswith(REFUSED) for error in errors):
            return Verdict.REFUSED
        return Verdict.NOT_NOW if all(error.startswith((*REFUSED, *NOT_NOW)) for error in errors) else Verdict.UNKNOWN

    def is_of_address(self, said: Answered) -> bool:
        return said.status == 429 or any(error in said.words for error in OF_ADDRESS)

    def pause_seconds(self, said: Answered) -> float:
        named = [seconds for error, seconds in NOT_NOW.items() if error in said.words]
        return max(named, default=said.retry_after_seconds)

    def _nonce(self) -> int:
        """In milliseconds, as all who ask with this key have it; never twice."""
        self._last_nonce = max(self._last_nonce + 1, time.time_ns() // MILLISECOND_NS)
        return self._last_nonce

    # Its stream.

    async def subscription(self) -> tuple[str, dict[str, Any]]:
        answer = await self._ask(Use.ORDER, "private_post_getwebsocketstoken", {})
        params = {
            "channel": "executions",
            "token": answer["result"]["token"],
            "snap_orders": False,
            "snap_trades": False,
        }
        return self._exchange.urls["api"]["ws"]["privateV2"], {"method": "subscribe", "params": params}

    def is_subscribed(self, message: Any) -> bool:
        if message.get("method") != "subscribe":
            return False
        if message.get("success") is not True:
            raise StreamLost(f"it is not subscribed to: {message.get('error')}")
        return True

    async def told(self, message: Any) -> list[Told]:
        if message.get("channel") != "executions":
            return []
        return [self._told(execution) for execution in message["data"]]

    # What is answered. Each raises one of MALFORMED for what is not in its form.

    def _orders(self, answer: Any, kind: str) -> list[VenueOrder]:
        return [self._order(txid, row) for txid, row in answer["result"][kind].items()]

    def _order(self, txid: str, row: Mapping[str, Any]) -> VenueOrder:
        described = row["descr"]
        limit, stop = prices_of(described["ordertype"], described["price"], described["price2"], row.get("stopprice"))
        return VenueOrder(
            client_order_id=row.get("cl_ord_id") or "",
            venue_order_id=txid,
            instrument_id=f"{VENUE}:{self._symbol(described['pair'])}",
            side=Side(described["type"]),
            state=STATES[row["status"]],
            quantity=exact(row["vol"]),
            filled_quantity=exact(row["vol_exec"]),
            limit_price=limit,
            stop_price=stop,
            time_ns=seconds_ns(row.get("closetm") or row["opentm"]),
            reason=row.get("reason") or "",
        )

    def _fills(self, answer: Any) -> tuple[int, list[VenueFill]]:
        trades = answer["result"]["trades"]
        return int(answer["result"]["count"]), [self._fill(txid, row) for txid, row in trades.items()]

    def _fill(self, txid: str, row: Mapping[str, Any]) -> VenueFill:
        symbol = self._symbol(row["pair"])
        return VenueFill(
            venue_fill_id=txid,
            venue_order_id=row["ordertxid"],
            client_order_id="",
            instrument_id=f"{VENUE}:{symbol}",
            side=Side(row["type"]),
            price=exact(row["price"]),
            quantity=exact(row["vol"]),
            fee=exact(row["fee"]),
            fee_asset=self._pairs.quotes.get(symbol, ""),
            maker=row.get("maker") is True,
            time_ns=seconds_ns(row["time"]),
        )

    def _told(self, execution: Mapping[str, Any]) -> Told:
        time_ns = text_ns(execution["timestamp"])
        client_order_id = execution.get("cl_ord_id") or ""
        is_trade = execution["exec_type"] == "trade"
        fill = None
        if is_trade:
            fee, fee_asset = fee_of(execution.get("fees") or ())
            fill = VenueFill(
                venue_fill_id=execution["exec_id"],
                venue_order_id=execution["order_id"],
                client_order_id=client_order_id,
                instrument_id=f"{VENUE}:{self._symbol(execution['symbol'])}",
                side=Side(execution["side"]),
                price=exact(execution["last_price"]),
                quantity=exact(execution["last_qty"]),
                fee=fee,
                fee_asset=fee_asset,
                maker=execution["liquidity_ind"] == "m",
                time_ns=time_ns,
            )
        # A trade may be told without the order's state; then its end is told by itself.
        status = execution.get("order_status") or ("partially_filled" if is_trade else execution["exec_type"])
        return Told(
            client_order_id=client_order_id,
            venue_order_id=execution["order_id"],
            state=STREAM_STATES.get(status, OrderState.WORKING),
            time_ns=time_ns,
            fill=fill,
            reason=execution.get("reason") or "",
        )


# What is asked for.


def order_params(ticket: Ticket) -> dict[str, str]:
    """A ticket that is not refused, in Kraken's words, but for its ids and its deadline."""
    params = {"ordertype": type_of(ticket), "type": ticket.side.value, "volume": plain(ticket.quantity)}
    # A stop's price is what it waits for, and its second one the limit that it then has.
    prices = [price for price in (trail_of(ticket), ticket.stop_price, ticket.limit_price) if price is not None]
    for name, price in zip(("price", "price2"), prices, strict=False):
        params[name] = price if isinstance(price, str) else plain(price)
    if ticket.order_type is not OrderType.MARKET:
        params["timeinforce"] = ticket.time_in_force.name
    if ticket.expire_time_ns is not None:
        params["expiretm"] = str(ticket.expire_time_ns // SECOND_NS)
    params["oflags"] = "post,fciq" if ticket.post_only else "fciq"
    return params


def type_of(ticket: Ticket) -> str:
    match ticket.order_type:
        case OrderType.STOP:
            return "stop-loss"
        case OrderType.STOP_LIMIT:
            return "stop-loss-limit"
        case OrderType.TRAILING_STOP:
            return "trailing-stop"
        case OrderType.TAKE_PROFIT:
            return "take-profit"
        case OrderType.TAKE_PROFIT_LIMIT:
            return "take-profit-limit"
        case order_type:
            return order_type.value


def trail_of(ticket: Ticket) -> str | None:
    if ticket.trail_amount is not None:
        return f"+{plain(ticket.trail_amount)}"
    return None if ticket.trail_fraction is None else f"+{plain(ticket.trail_fraction * PERCENT)}%"


def deadline() -> str:
    """Until when a request may be taken, in RFC 3339."""
    return (datetime.now(UTC) + timedelta(seconds=DEADLINE_SECONDS)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# What is answered.


def placed(answer: Any) -> Done:
    """Raises ValueError for an answer without an order."""
    txids = answer["result"]["txid"]
    if not txids:
        raise ValueError("no order was placed")
    return Done(venue_order_id=str(txids[0]))


def canceled(answer: Any) -> Done:
    """Raises ValueError for an answer by which nothing was canceled."""
    if int(answer["result"]["count"]) < 1:
        raise ValueError("no order was canceled")
    return Done()


def amended(answer: Any) -> Done:
    """Raises ValueError for an answer without an amendment."""
    if not answer["result"]["amend_id"]:
        raise ValueError("no order was amended")
    return Done()


def pairs_of(listed: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Ids by symbol, symbols by every name, and quote assets by symbol."""
    ids: dict[str, str] = {}
    symbols: dict[str, str] = {}
    quotes: dict[str, str] = {}
    for pair, row in listed.items():
        base, _, quote = (row.get("wsname") or "").partition("/")
        if not (base and quote):
            continue
        base, quote = NAMES.get(base, base), NAMES.get(quote, quote)
        symbol = base + quote
        ids[symbol], quotes[symbol] = pair, quote
        for name in (pair, row["altname"], row["wsname"], f"{base}/{quote}"):
            symbols[name] = symbol
    return ids, symbols, quotes


def prices_of(kind: str, first: str, second: str, stop: Any) -> tuple[Decimal | None, Decimal | None]:
    """The limit and the stop, as Kraken describes an order; of one that trails, where its stop is."""
    if kind == "limit":
        return exact_or_none(first), None
    if kind.startswith("trailing"):
        return None, exact_or_none(stop)
    if kind.endswith("-limit"):
        return exact_or_none(second), exact_or_none(first)
    return None, None if kind == "market" else exact_or_none(first)


def fee_of(fees: Sequence[Mapping[str, Any]]) -> tuple[Decimal, str]:
    """Raises ValueError for fees in more than one asset."""
    assets = {fee["asset"] for fee in fees}
    if len(assets) > 1:
        raise ValueError("a fee in more than one asset")
    return sum((exact(fee["qty"]) for fee in fees), Decimal(0)), assets.pop() if assets else ""


def seconds_ns(written: str) -> int:
    """Raises for what is no number."""
    return int(exact(written) * SECOND_NS)


def text_ns(written: str) -> int:
    """A time in RFC 3339, to the nanosecond."""
    whole, _, rest = written.removesuffix("Z").partition(".")
    seconds = datetime.fromisoformat(whole).replace(tzinfo=UTC)
    return int(seconds.timestamp()) * SECOND_NS + int(rest.ljust(9, "0")[:9] or 0)
