"""The promises, each looked at for itself once everything has drained: what is wrong, and how much was looked at."""

import json
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC
from decimal import ROUND_UP, Decimal
from typing import Any
from uuid import UUID

import asyncpg
from tradeloom.orders.v1 import orders_pb2

from libs.money import rounded
from tests.faults.proof.load import ANSWER_SECONDS, NEVER_MET, OPENING, Journal, Load
from tests.faults.proof.stand import INSTRUMENTS, Doors, until
from tests.faults.proof.venue import Venue
from tests.mesh import sign_in

DRAIN_SECONDS = 120.0
CALL_SECONDS = 60.0
SHOWN = 5
OPEN_STATES = ("pending_new", "new", "partially_filled", "pending_replace", "pending_cancel", "unknown")
# What a venue may say of an order that is so here.
AGREEING = {
    "new": {"open"},
    "partially_filled": {"open"},
    "filled": {"filled"},
    "canceled": {"canceled"},
    "rejected": {"rejected"},
}
PLACE_ORDER = "tradeloom.orders.v1.PlaceOrder"
EVERY = [each for of_venue in INSTRUMENTS.values() for each in of_venue]
BASE_ASSETS = {each.instrument_id: each.base_asset for each in EVERY}
FEE_RATES = {each.instrument_id: max(each.maker_fee_rate, each.taker_fee_rate) for each in EVERY}

CHANGED = ("quantity", "limit_price", "protection_price")
"""Of what a change names."""

# What a fill's fee counts in the quote asset, where that is taken of what was bought.
FEE_WORTH = "CASE fill.fee_asset WHEN 'USDT' THEN fill.fee ELSE fill.fee * fill.price END"

NEVER_MET_PRICES = tuple(map(str, NEVER_MET.values()))

# What is still on its way, by name; nothing of it is left once all has drained.
UNDERWAY = {
    "orders on their way": """
        SELECT count(*) FROM orders.trading_orders WHERE state IN ('pending_new', 'pending_replace', 'pending_cancel')
        """,
    "orders that the market may meet": f"""
        SELECT count(*) FROM orders.trading_orders
        WHERE state IN {OPEN_STATES} AND (limit_price IN {NEVER_MET_PRICES}) IS NOT TRUE
        """,
    "intents": "SELECT count(*) FROM execution.venue_orders WHERE state IN ('intended', 'sending', 'unknown')",
    "cancels": "SELECT count(*) FROM execution.venue_cancels",
    "changes": "SELECT count(*) FROM execution.venue_replaces",
    "facts of orders": "SELECT count(*) FROM orders.outbox WHERE stream_epoch IS NULL",
    "facts of execution": "SELECT count(*) FROM execution.outbox WHERE stream_epoch IS NULL",
    "facts execution has not applied": """
        SELECT count(*) FROM orders.outbox AS told LEFT JOIN execution.fact_positions AS reader
          ON reader.key = told.key AND reader.source = 'orders'
        WHERE told.sequence > coalesce(reader.sequence, 0)
        """,
    "facts orders has not applied": """
        SELECT count(*) FROM execution.outbox AS told LEFT JOIN orders.fact_positions AS reader
          ON reader.key = told.key AND reader.source = 'execution'
        WHERE told.sequence > coalesce(reader.sequence, 0)
        """,
}


@dataclass
class Finding:
    """How many things a promise was looked for in, and where it was broken."""

    looked_at: int = 0
    wrong: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        self.looked_at += 1
        if not holds:
            self.wrong.append(otherwise)

    @property
    def is_kept(self) -> bool:
        """A promise that was looked for nowhere is not kept."""
        return self.looked_at > 0 and not self.wrong


@dataclass(frozen=True)
class Shown:
    """What the API shows of an account."""

    events: Sequence[orders_pb2.OrderEvent]
    """Its story, streamed anew from the first event."""
    portfolio: orders_pb2.GetPortfolioResponse


@dataclass(frozen=True)
class Evidence:
    """Everything that is looked at; rows see every row."""

    rows: asyncpg.Connection
    journal: Journal
    venue: Venue
    followed: Mapping[str, Sequence[orders_pb2.OrderEvent]]
    """Each account's story as it was streamed during all faults, resumed over every break."""
    shown: Mapping[str, Shown]


Promise = Callable[[Evidence], Awaitable[Finding]]


async def drained(rows: asyncpg.Connection, load: Load) -> dict[str, int]:
    """What is left on its way, and how many streams have not told all, at the latest after DRAIN_SECONDS."""
    left: dict[str, int] = {}

    async def is_drained() -> bool:
        load.check()
        left.clear()
        for name, query in UNDERWAY.items():
            if count := await rows.fetchval(query):
                left[name] = count
        sequences = await rows.fetch("SELECT account_id::text, account_sequence FROM orders.accounts")
        told = {row["account_id"]: row["account_sequence"] for row in sequences}
        if behind := sum(len(person.events) < told.get(person.account_id, 0) for person in load.people):
            left["streams"] = behind
        return not left

    with suppress(TimeoutError):
        await until(is_drained, "everything has drained", DRAIN_SECONDS)
    return left


async def shown_of(doors: Doors, load: Load) -> dict[str, Shown]:
    """What the API shows of every account, when nothing happens in it any more."""
    found: dict[str, Shown] = {}
    for person in load.people:
        caller = sign_in(person.user_id)
        request = orders_pb2.GetPortfolioRequest(account_id=person.account_id)
        portfolio = await doors.portfolio_stubs()[0].GetPortfolio(request, metadata=caller, timeout=CALL_SECONDS)
        asked = orders_pb2.StreamOrderEventsRequest(account_id=person.account_id, after_cursor="0")
        stream = doors.order_stubs()[-1].StreamOrderEvents(asked, metadata=caller, timeout=ANSWER_SECONDS)
        events: list[orders_pb2.OrderEvent] = []
        async for step in stream:
            if step.HasField("event"):
                events.append(step.event)
            elif step.HasField("heartbeat"):
                break
        stream.cancel()
        found[person.account_id] = Shown(events, portfolio)
    return found


async def acknowledged_orders_exist(evidence: Evidence) -> Finding:
    """Every order that a person was told of is there, as they were told, or as they were told of its changes since."""
    finding = Finding()
    changed = {order.order_id: order for _, order in made_changes(evidence)}
    columns = "order_id, account_id, instrument_id, side, order_type, time_in_force, quantity, limit_price, create_time"
    kept = {
        str(row["order_id"]): row for row in await evidence.rows.fetch(f"SELECT {columns} FROM orders.trading_orders")
    }
    for request_id, order in evidence.journal.acknowledged.items():
        row = kept.get(order.order_id)
        told = as_acknowledged(order, changed.get(order.order_id, order))
        finding.expect(row is not None and told_of(row) == told, f"{order.order_id}, of request {request_id}")
    return finding


def made_changes(evidence: Evidence) -> list[tuple[str, orders_pb2.Order]]:
    """Each change that was made, as it was told, by its id at the venue; with the order as it was told to be since."""
    return [
        (event.order.client_order_id, event.order)
        for events in evidence.followed.values()
        for event in events
        if event.kind == orders_pb2.ORDER_EVENT_KIND_REPLACED
    ]


def told_of(row: asyncpg.Record) -> tuple[object, ...]:
    return (
        str(row["account_id"]),
        row["instrument_id"],
        orders_pb2.OrderSide.Value(f"ORDER_SIDE_{row['side'].upper()}"),
        orders_pb2.OrderType.Value(f"ORDER_TYPE_{row['order_type'].upper()}"),
        orders_pb2.TimeInForce.Value(f"TIME_IN_FORCE_{row['time_in_force'].upper()}"),
        row["quantity"],
        row["limit_price"],
        row["create_time"],
    )


def as_acknowledged(order: orders_pb2.Order, changed: orders_pb2.Order) -> tuple[object, ...]:
    quantity, limit_price = terms_of(changed)
    return (
        order.account_id,
        order.instrument_id,
        order.side,
        order.order_type,
        order.time_in_force,
        quantity,
        limit_price,
        order.create_time.ToDatetime(tzinfo=UTC),
    )


def terms_of(order: orders_pb2.Order) -> tuple[Decimal, Decimal | None]:
    return Decimal(order.quantity.value), Decimal(order.limit_price.value) if order.HasField("limit_price") else None


ENDS = {
    orders_pb2.ORDER_STATE_FILLED,
    orders_pb2.ORDER_STATE_CANCELED,
    orders_pb2.ORDER_STATE_REJECTED,
    orders_pb2.ORDER_STATE_EXPIRED,
}


async def changes_are_made_once_or_refused(evidence: Evidence) -> Finding:
    """A change that was taken up is asked of the venue once, and then made as it was asked for, or not at all and told so.

    Nothing else changes what an order is for; a request that was refused, or that nobody made, asks for nothing.
    """
    finding = Finding()
    changes = {
        order.replacement.client_order_id: evidence.journal.changes[request_id]
        for request_id, order in evidence.journal.taken_up.items()
    }
    asked: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    for events in streamed(evidence.shown).values():
        terms: dict[str, tuple[Decimal, Decimal | None]] = {}
        underway: dict[str, str] = {}
        for event in events:
            order, order_id = event.order, event.order.order_id
            before = terms.get(order_id, terms_of(order))
            match event.kind:
                case orders_pb2.ORDER_EVENT_KIND_REPLACE_REQUESTED:
                    change = order.replacement.client_order_id
                    asked[change] += 1
                    finding.expect(order_id not in underway, f"{order_id} has a second change under way: {change}")
                    underway[order_id] = change
                case orders_pb2.ORDER_EVENT_KIND_REPLACED:
                    change = underway.pop(order_id, "")
                    ended[change] += 1
                    request = changes.get(change)
                    is_this = order.client_order_id == change and request is not None and request.order_id == order_id
                    finding.expect(is_this, f"{order_id} was changed as {order.client_order_id}, asked as {change}")
                    before = as_changed(before, request.replacement) if request else before
                case orders_pb2.ORDER_EVENT_KIND_REPLACE_REJECTED if order_id in underway:
                    ended[underway.pop(order_id)] += 1
            if order.state in ENDS and order_id in underway:
                ended[underway.pop(order_id)] += 1
            finding.expect(terms_of(order) == before, f"{order_id} is for {terms_of(order)}, and was for {before}")
            terms[order_id] = before
    for change in changes.keys() | asked.keys():
        finding.expect(change in changes, f"nobody asked for the change {change}")
        finding.expect(
            asked[change] == ended[change] == 1,
            f"change {change} was asked {asked[change]}, ended {ended[change]} times",
        )
    return finding


def as_changed(terms: tuple[Decimal, Decimal | None], change: orders_pb2.Replacement) -> tuple[Decimal, Decimal | None]:
    quantity, limit_price = terms
    return (
        Decimal(change.quantity.value) if change.HasField("quantity") else quantity,
        Decimal(change.limit_price.value) if change.HasField("limit_price") else limit_price,
    )


async def one_order_for_each_request(evidence: Evidence) -> Finding:
    """A request that was acknowledged made the one order of its answer, any other made one at most, and nothing else made any."""
    finding = Finding()
    finding.wrong.extend(evidence.journal.contradictions)
    kept = await evidence.rows.fetch(
        "SELECT request_id, answer FROM orders.request_keys WHERE method = $1", PLACE_ORDER
    )
    made = {row["request_id"]: orders_pb2.PlaceOrderResponse.FromString(row["answer"]).order for row in kept}
    for request_id, order in evidence.journal.acknowledged.items():
        finding.expect(made.get(request_id) == order, f"request {request_id} has not the answer that was given")
    answered = Counter(order.order_id for order in made.values())
    for row in await evidence.rows.fetch("SELECT order_id::text FROM orders.trading_orders"):
        finding.expect(
            answered[row["order_id"]] == 1, f"order {row['order_id']} is of {answered[row['order_id']]} requests"
        )
    for request_id in made.keys() - evidence.journal.asked.keys():
        finding.expect(False, f"nobody asked for request {request_id}")
    return finding


async def orders_reach_the_venue_once(evidence: Evidence) -> Finding:
    """The venue has each order of ours, once, and none that is not; one that ended here unsent at most once."""
    finding = Finding()
    ours = {row["order_id"] for row in await evidence.rows.fetch("SELECT order_id FROM orders.trading_orders")}
    arrivals: Counter[UUID] = Counter()
    for order in await evidence.venue.orders():
        arrivals[order.order_id] += order.arrivals
    unsent = await evidence.venue.unsent()
    for order_id in ours | arrivals.keys():
        finding.expect(order_id in ours, f"the venue has {order_id}, which nobody placed here")
        is_once = arrivals[order_id] == 1 or (order_id in unsent and not arrivals[order_id])
        finding.expect(is_once, f"{order_id} reached the venue {arrivals[order_id]} times")
    return finding


async def states_agree(evidence: Evidence) -> Finding:
    """No order is open here that has ended at the venue, nor ended here otherwise than there."""
    finding = Finding()
    here = {
        row["order_id"]: row["state"]
        for row in await evidence.rows.fetch("SELECT order_id, state FROM orders.trading_orders")
    }
    for order in await evidence.venue.orders():
        if state := here.get(order.order_id):
            agrees = order.state in AGREEING.get(state, ())
            finding.expect(agrees, f"{order.order_id} is {state} here and {order.state} at the venue")
    return finding


async def orders_are_for_the_same_at_the_venue(evidence: Evidence) -> Finding:
    """What the venue has of an order is for as much, and at the price, that it is for here; never twice at once, and it has traded no more."""
    finding = Finding()
    columns = "order_id, quantity, coalesce(limit_price, protection_price) AS worst_price"
    here = {
        row["order_id"]: (row["quantity"], row["worst_price"])
        for row in await evidence.rows.fetch(f"SELECT {columns} FROM orders.trading_orders")
    }
    for order in await evidence.venue.orders():
        if order.terms is None or order.order_id not in here:
            continue
        terms = here[order.order_id]
        finding.expect(order.terms == terms, f"{order.order_id} is for {terms} here and for {order.terms} at the venue")
        finding.expect(not order.is_twice, f"{order.order_id} worked at the venue twice at once")
        finding.expect(order.filled_quantity <= order.terms[0], f"{order.order_id} has traded {order.filled_quantity}")
    return finding


async def fills_are_the_venues(evidence: Evidence) -> Finding:
    """Each fill of the venue is booked once and to the last digit, and no other is."""
    finding = Finding()
    columns = "venue_fill_id, order_id, price, quantity, fee, fee_asset"
    booked = Counter(
        tuple(row) for row in await evidence.rows.fetch(f"SELECT {columns} FROM orders.trading_executions")
    )
    there = Counter(
        (fill.venue_fill_id, fill.order_id, fill.price, fill.quantity, fill.fee, fill.fee_asset)
        for fill in await evidence.venue.fills()
    )
    for fill in booked | there:
        finding.expect(booked[fill] == there[fill] == 1, f"{fill} is booked {booked[fill]} times, traded {there[fill]}")
    return finding


async def filled_quantities_are_sums_of_fills(evidence: Evidence) -> Finding:
    """What an order has traded is the sum of its fills, here and at the venue."""
    finding = Finding()
    at_venue = {order.order_id: order.filled_quantity for order in await evidence.venue.orders()}
    for row in await evidence.rows.fetch(
        f"""
        SELECT order_id, filled_quantity, filled_notional, fees,
          coalesce(sum(fill.quantity), 0) AS quantity, coalesce(sum(fill.quantity * fill.price), 0) AS notional,
          coalesce(sum({FEE_WORTH}), 0) AS fee
        FROM orders.trading_orders LEFT JOIN orders.trading_executions AS fill USING (order_id) GROUP BY order_id
        """
    ):
        kept = row["filled_quantity"], row["filled_notional"], row["fees"]
        finding.expect(kept == (row["quantity"], row["notional"], row["fee"]), f"{row['order_id']} is not its fills")
        quantity = at_venue.get(row["order_id"], row["quantity"])
        finding.expect(quantity == row["quantity"], f"{row['order_id']} has traded {quantity} at the venue")
    return finding


async def positions_are_sums_of_fills(evidence: Evidence) -> Finding:
    finding = Finding()
    fills = await evidence.rows.fetch(
        f"""
        SELECT account_id, instrument_id, sum(CASE side WHEN 'buy' THEN quantity ELSE -quantity END) AS quantity,
          sum({FEE_WORTH}) AS fees
        FROM orders.trading_executions AS fill GROUP BY account_id, instrument_id
        """
    )
    kept = await evidence.rows.fetch("SELECT account_id, instrument_id, quantity, fees FROM orders.positions")
    traded, positions = ({tuple(row)[:2]: tuple(row)[2:] for row in rows} for rows in (fills, kept))
    for key in traded.keys() | positions.keys():
        finding.expect(
            traded.get(key) == positions.get(key), f"position {key} is {positions.get(key)}, not {traded.get(key)}"
        )
    return finding


async def ledger_sums_to_zero(evidence: Evidence) -> Finding:
    """Each transaction, for each asset; and each fill has one transaction."""
    finding = Finding()
    for row in await evidence.rows.fetch(
        "SELECT transaction_id, asset, sum(amount) AS total FROM orders.ledger_entries GROUP BY transaction_id, asset"
    ):
        finding.expect(row["total"] == 0, f"transaction {row['transaction_id']} leaves {row['total']} {row['asset']}")
    for row in await evidence.rows.fetch(
        """
        SELECT execution_id, count(DISTINCT transaction_id) AS transactions
        FROM orders.trading_executions LEFT JOIN orders.ledger_entries USING (execution_id) GROUP BY execution_id
        """
    ):
        finding.expect(row["transactions"] == 1, f"fill {row['execution_id']} has {row['transactions']} transactions")
    return finding


async def balances_are_the_ledgers_and_the_venues(evidence: Evidence) -> Finding:
    """A balance is the sum of the account's book, and what it began with and what the venue's fills moved."""
    finding = Finding()
    kept = await evidence.rows.fetch("SELECT account_id, asset, total FROM orders.balances")
    booked = await evidence.rows.fetch(
        """
        SELECT account_id, asset, sum(amount) FROM orders.ledger_entries WHERE book = 'account'
        GROUP BY account_id, asset
        """
    )
    balances, ledger = ({tuple(row)[:2]: row[2] for row in rows} for rows in (kept, booked))
    moved = await evidence.venue.moved()
    began = {
        (UUID(account_id), asset): amount for account_id in evidence.journal.opened for asset, amount in OPENING.items()
    }
    for key in began.keys() | balances.keys() | ledger.keys() | moved.keys():
        at_venue = began.get(key, Decimal(0)) + moved.get(key, Decimal(0))
        finding.expect(
            balances.get(key) == ledger.get(key) == at_venue,
            f"{key}: balance {balances.get(key)}, ledger {ledger.get(key)}, venue {at_venue}",
        )
    return finding


async def reserved_is_what_open_orders_may_cost(evidence: Evidence) -> Finding:
    """An order's part is worked out anew; an account's is the sum over its open orders; who has ended has none."""
    finding = Finding()
    sums: defaultdict[tuple[UUID, str], Decimal] = defaultdict(Decimal)
    for row in await evidence.rows.fetch("SELECT * FROM orders.trading_orders"):
        finding.expect(row["reserved"] == may_cost(row), f"{row['order_id']} has {row['reserved']} set aside")
        sums[row["account_id"], row["reserved_asset"]] += row["reserved"]
    for row in await evidence.rows.fetch("SELECT account_id, asset, reserved FROM orders.balances"):
        key = row["account_id"], row["asset"]
        finding.expect(row["reserved"] == sums[key], f"{key} has {row['reserved']} set aside, its orders {sums[key]}")
    return finding


def may_cost(row: asyncpg.Record) -> Decimal:
    if row["state"] not in OPEN_STATES:
        return Decimal(0)
    change = {name: Decimal(value) for name, value in json.loads(row["replacement"] or "{}").items() if name in CHANGED}
    # As it is or as it may be by now at the venue, whichever is dearer.
    known = dict(row)
    return max(cost(known), cost(known | change))


def cost(row: Mapping[str, Any]) -> Decimal:
    left = row["quantity"] - row["filled_quantity"]
    if row["side"] == "sell":
        return left
    notional = left * (row["limit_price"] or row["protection_price"])
    return rounded(notional * (1 + FEE_RATES[row["instrument_id"]]), ROUND_UP)


async def open_orders_are_counted(evidence: Evidence) -> Finding:
    finding = Finding()
    for row in await evidence.rows.fetch(
        f"""
        SELECT account_id, open_orders, count(order_id) FILTER (WHERE state IN {OPEN_STATES}) AS counted
        FROM orders.accounts LEFT JOIN orders.trading_orders USING (account_id) GROUP BY account_id
        """
    ):
        finding.expect(
            row["open_orders"] == row["counted"], f"{row['account_id']} counts {row['open_orders']} open orders"
        )
    return finding


async def stories_are_complete_and_in_order(evidence: Evidence) -> Finding:
    """Each account's events are counted from 1 without a gap: those kept, those streamed during the faults, those streamed now."""
    finding = Finding()
    kept: defaultdict[str, list[int]] = defaultdict(list)
    for row in await evidence.rows.fetch(
        "SELECT account_id::text, account_sequence FROM orders.order_events ORDER BY account_id, account_sequence"
    ):
        kept[row["account_id"]].append(row["account_sequence"])
    for row in await evidence.rows.fetch("SELECT account_id::text, account_sequence FROM orders.accounts"):
        account_id, counted = row["account_id"], list(range(1, row["account_sequence"] + 1))
        finding.expect(kept[account_id] == counted, f"{account_id} keeps not each of its {len(counted)} events")
        for name, events in (("followed", evidence.followed), ("streamed", streamed(evidence.shown))):
            told = [event.account_sequence for event in events.get(account_id, ())]
            finding.expect(told == counted, f"{account_id}, {name}: {len(told)} events, of {len(counted)}")
        same = list(evidence.followed.get(account_id, ())) == list(streamed(evidence.shown).get(account_id, ()))
        finding.expect(same, f"{account_id} was told otherwise later")
    return finding


def streamed(shown: Mapping[str, Shown]) -> dict[str, Sequence[orders_pb2.OrderEvent]]:
    return {account_id: each.events for account_id, each in shown.items()}


async def stories_end_where_orders_stand(evidence: Evidence) -> Finding:
    """Replayed, the events make the orders as they are kept."""
    finding = Finding()
    columns = "order_id, state, filled_quantity, fees, reason, revision"
    kept = {
        str(row["order_id"]): tuple(row)[1:]
        for row in await evidence.rows.fetch(f"SELECT {columns} FROM orders.trading_orders")
    }
    replayed = {event.order.order_id: event.order for each in evidence.shown.values() for event in each.events}
    for order_id in kept.keys() | replayed.keys():
        order = replayed.get(order_id)
        told = order and (
            orders_pb2.OrderState.Name(order.state).removeprefix("ORDER_STATE_").lower(),
            Decimal(order.filled_quantity.value),
            Decimal(order.fees.value),
            order.reason,
            order.revision,
        )
        finding.expect(told == kept.get(order_id), f"{order_id} is {kept.get(order_id)}, told as {told}")
    return finding


async def portfolios_are_what_the_stories_tell(evidence: Evidence) -> Finding:
    """What the API shows of balances and positions follows from the fills that the API streamed."""
    finding = Finding()
    for account_id, shown in evidence.shown.items():
        totals = dict(OPENING)
        positions: defaultdict[str, Decimal] = defaultdict(Decimal)
        for event in shown.events:
            if event.HasField("execution"):
                fill = event.execution
                sign = 1 if fill.side == orders_pb2.ORDER_SIDE_BUY else -1
                quantity, price = sign * Decimal(fill.quantity.value), Decimal(fill.price.value)
                positions[fill.instrument_id] += quantity
                totals[BASE_ASSETS[fill.instrument_id]] += quantity
                totals["USDT"] -= quantity * price
                totals[fill.fee_asset] -= Decimal(fill.fee.value)
        told = {each.asset: Decimal(each.total.value) for each in shown.portfolio.balances}
        finding.expect(
            told == {asset: total for asset, total in totals.items() if total}, f"balances of {account_id}: {told}"
        )
        held = {each.instrument_id: Decimal(each.quantity.value) for each in shown.portfolio.positions}
        finding.expect(
            held == {name: total for name, total in positions.items() if total}, f"positions of {account_id}: {held}"
        )
        finding.expect(
            shown.portfolio.revision == len(shown.events), f"{account_id} stands at {shown.portfolio.revision}"
        )
    return finding


async def facts_are_complete_and_applied(evidence: Evidence) -> Finding:
    """Facts about each account are counted from 1 without a gap, all have left, and their reader is at the last."""
    finding = Finding()
    for source, reader in (("orders", "execution"), ("execution", "orders")):
        applied = {
            row["key"]: (row["sequence"], row["ahead"])
            for row in await evidence.rows.fetch(
                f"SELECT key, sequence, ahead FROM {reader}.fact_positions WHERE source = $1", source
            )
        }
        for row in await evidence.rows.fetch(
            f"""
            SELECT key, min(sequence) AS first, max(sequence) AS last, count(*) AS count, count(stream_epoch) AS left
            FROM {source}.outbox GROUP BY key
            """
        ):
            last = row["last"]
            finding.expect(
                row["first"] == 1 and row["count"] == last == row["left"],
                f"{source} tells of {row['key']} up to {last}, keeps {row['count']}, {row['left']} have left",
            )
            finding.expect(
                applied.get(row["key"]) == (last, last), f"{reader} is at {applied.get(row['key'])} of {last}"
            )
    return finding


async def nothing_is_underway(evidence: Evidence) -> Finding:
    """Every cancel and every change is answered, every intent is sent, and every order has ended that is not left to rest."""
    orders = await evidence.rows.fetch("SELECT order_id FROM orders.trading_orders")
    finding = Finding(looked_at=len(orders))
    for name in ("orders on their way", "orders that the market may meet", "intents", "cancels", "changes"):
        if count := await evidence.rows.fetchval(UNDERWAY[name]):
            finding.wrong.append(f"{count} {name}")
    return finding


# Those that hold in every snapshot of the database, whatever is on its way.
AT_ANY_MOMENT: Sequence[Promise] = (
    positions_are_sums_of_fills,
    ledger_sums_to_zero,
    reserved_is_what_open_orders_may_cost,
    open_orders_are_counted,
)
PROMISES: Sequence[Promise] = (
    acknowledged_orders_exist,
    one_order_for_each_request,
    changes_are_made_once_or_refused,
    orders_reach_the_venue_once,
    orders_are_for_the_same_at_the_venue,
    states_agree,
    fills_are_the_venues,
    filled_quantities_are_sums_of_fills,
    positions_are_sums_of_fills,
    ledger_sums_to_zero,
    balances_are_the_ledgers_and_the_venues,
    reserved_is_what_open_orders_may_cost,
    open_orders_are_counted,
    stories_are_complete_and_in_order,
    stories_end_where_orders_stand,
    portfolios_are_what_the_stories_tell,
    facts_are_complete_and_applied,
    nothing_is_underway,
)


async def verify(evidence: Evidence, promises: Iterable[Promise] = PROMISES) -> dict[str, Finding]:
    """What was found of each promise, by its name."""
    return {promise.__name__.replace("_", " "): await promise(evidence) for promise in promises}


def broken(findings: Mapping[str, Finding]) -> dict[str, list[str]]:
    """The promises that are not kept, with some of what is wrong and how much that is."""
    return {
        name: [f"{len(finding.wrong)} of {finding.looked_at}", *finding.wrong[:SHOWN]]
        for name, finding in findings.items()
        if not finding.is_kept
    }
