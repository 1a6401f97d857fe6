"""Accounts and what they hold, were worth and traded."""

import asyncio
from datetime import timedelta
from uuid import UUID

from tradeloom.orders.v1 import orders_pb2, orders_pb2_grpc

from libs.errors import RevisionNotReached
from libs.mesh import identity, pages
from libs.mesh.requests import answer_once, key_of
from libs.mesh.wire import decimal_from_proto, decimal_to_proto, time_asked, timestamp
from libs.store.database import Connection, Database
from services.orders import domain, equity_store, ledger_store, market, store, use_cases, wire
from services.orders.domain import Account, Balance, Position
from services.orders.hub import Hub
from services.orders.market import Market
from services.orders.servicer.desk import USUAL_PAGE_SIZE, beat, own_account
from services.orders.store import AccountStore

USUAL_POINTS = 500
POSITIONS_MAX = 10_000
PORTFOLIO_SECONDS = 1.0
"""How often a stream looks at what an account is worth."""


class PortfolioServicer(orders_pb2_grpc.PortfolioServiceServicer):
    def __init__(
        self,
        database: Database,
        create_account: use_cases.CreateAccount,
        close_position: use_cases.ClosePosition,
        known: Market,
        hub: Hub,
        heartbeat_seconds: float,
    ) -> None:
        self._database, self._market = database, known
        self._create_account, self._close_position = create_account, close_position
        self._hub, self._heartbeat_seconds = hub, heartbeat_seconds

    async def CreateAccount(self, request, context):
        async def work(rows: Connection) -> orders_pb2.CreateAccountResponse:
            account = await self._create_account(
                AccountStore(rows),
                user_id=identity.current().user_id,
                name=request.name,
                mode=wire.MODES[request.mode],
                kind=wire.ACCOUNT_KINDS[request.kind],
                starting={each.asset: decimal_from_proto(each.amount) for each in request.starting_balances},
                valuation_asset=request.valuation_asset,
                venue=request.venue,
                leverage=request.leverage or 1,
            )
            return orders_pb2.CreateAccountResponse(account=wire.account_to_proto(account))

        return await answer_once(self._database, key_of(request), orders_pb2.CreateAccountResponse, work)

    async def ListAccounts(self, request, context):
        size = pages.size_of(request.page_size, USUAL_PAGE_SIZE)
        caller = identity.current()
        after = pages.uuid_after(request.page_token) or UUID(int=0)
        async with self._database.transaction(caller.user_id) as rows:
            found = await store.list_accounts(rows, caller.user_id, after, size + 1, only=caller.account_ids)
        page, more = found[:size], len(found) > size
        return orders_pb2.ListAccountsResponse(
            accounts=map(wire.account_to_proto, page),
            next_page_token=pages.token_after(str(page[-1].account_id)) if more else "",
        )

    async def GetPortfolio(self, request, context):
        held = await self._held(identity.current().user_id, request.account_id)
        if held[0].account_sequence < request.min_revision:
            raise RevisionNotReached("the account is not yet that new; retry", revision=held[0].account_sequence)
        return wire.portfolio_to_proto(use_cases.appraise(*held, self._market, market.now()))

    async def _held(self, user_id: UUID, account_id: str) -> tuple[Account, list[Balance], list[Position]]:
        """The account, and its balances and positions, of one moment."""
        async with self._database.transaction(user_id, snapshot=True) as rows:
            account = await own_account(rows, account_id)
            balances = await store.balances(rows, account.account_id)
            positions = await store.list_positions(
                rows, account.account_id, include_flat=False, after="", limit=POSITIONS_MAX
            )
        return account, balances, positions

    async def ListPositions(self, request, context):
        size = pages.size_of(request.page_size, USUAL_PAGE_SIZE)
        key = pages.key_of(request.page_token, 1)
        async with self._database.transaction(identity.current().user_id, snapshot=True) as rows:
            account = await own_account(rows, request.account_id)
            found = await store.list_positions(
                rows,
                account.account_id,
                include_flat=request.include_flat,
                after=str(key[0]) if key else "",
                limit=size + 1,
            )
            backed = await store.backed_positions(rows, account)
            balances = await store.balances(rows, account.account_id) if backed else []
        page, more = found[:size], len(found) > size
        now = market.now()
        if account.is_margin:
            held = use_cases.holdings(account, backed, self._market, now)
            valued = use_cases.value_margined(page, balances, held, self._market)
        else:
            valued = [use_cases.value(position, self._market.quote(position.instrument_id, now)) for position in page]
        return orders_pb2.ListPositionsResponse(
            positions=wire.positions_to_proto(valued, is_margin=account.is_margin),
            next_page_token=pages.token_after(page[-1].instrument_id) if more else "",
        )

    async def ClosePosition(self, request, context):
        async def work(rows: Connection) -> orders_pb2.ClosePositionResponse:
            order = await self._close_position(
                AccountStore(rows),
                UUID(request.account_id),
                request.instrument_id,
                decimal_from_proto(request.quantity) if request.HasField("quantity") else None,
            )
            return orders_pb2.ClosePositionResponse(order=wire.order_to_proto(order))

        return await answer_once(self._database, key_of(request), orders_pb2.ClosePositionResponse, work)

    async def ListLedgerEntries(self, request, context):
        size = pages.size_of(request.page_size, USUAL_PAGE_SIZE)
        before = pages.number_after(request.page_token)
        async with self._database.transaction(identity.current().user_id) as rows:
            account = await own_account(rows, request.account_id)
            found = await ledger_store.list_entries(
                rows,
                account.account_id,
                ledger_store.Filter(
                    asset=request.asset,
                    order_id=UUID(request.order_id) if request.order_id else None,
                    deployment_id=UUID(request.deployment_id) if request.deployment_id else None,
                    start_time=time_asked(request, "start_time"),
                    end_time=time_asked(request, "end_time"),
                ),
                before=before or None,
                limit=size + 1,
            )
        page, more = found[:size], len(found) > size
        return orders_pb2.ListLedgerEntriesResponse(
            entries=map(wire.entry_to_proto, page),
            next_page_token=pages.token_after(page[-1].entry_id) if more else "",
        )

    async def GetEquityHistory(self, request, context):
        size = pages.size_of(request.page_size, USUAL_POINTS)
        after = pages.number_after(request.page_token)
        start = time_asked(request, "start_time") or domain.EPOCH
        async with self._database.transaction(identity.current().user_id) as rows:
            account = await own_account(rows, request.account_id)
            found = await equity_store.list_points(
                rows,
                account.account_id,
                bucket=wire.BUCKETS[request.resolution],
                after=domain.EPOCH + timedelta(seconds=after) if after else start,
                before=time_asked(request, "end_time") or market.now(),
                limit=size + 1,
            )
        page, more = found[:size], len(found) > size
        return orders_pb2.GetEquityHistoryResponse(
            points=[
                orders_pb2.EquityPoint(time=timestamp(time), equity=decimal_to_proto(equity)) for time, equity in page
            ],
            # Points lie at whole minutes.
            next_page_token=pages.token_after(round((found[size][0] - domain.EPOCH).total_seconds())) if more else "",
            valuation_asset=account.valuation_asset,
        )

    async def StreamPortfolio(self, request, context):
        user_id = identity.current().user_id
        heartbeat = self._heartbeat_seconds
        loop = asyncio.get_running_loop()
        told, told_at = None, loop.time()
        async with self._hub.listening(request.account_id) as woken:
            held, read_at = await self._held(user_id, request.account_id), loop.time()
            while True:
                portfolio = wire.portfolio_to_proto(use_cases.appraise(*held, self._market, market.now()))
                message = orders_pb2.StreamPortfolioResponse(cursor=str(portfolio.revision))
                if portfolio != told:
                    message.portfolio.CopyFrom(portfolio)
                elif loop.time() - told_at >= heartbeat:
                    message.heartbeat.CopyFrom(beat())
                if message.WhichOneof("step"):
                    message.heartbeat_seconds = 0 if told else max(1, round(heartbeat))
                    told, told_at = portfolio, loop.time()
                    yield message
                # Prices move all the time: what follows within a second is told as one.
                await asyncio.sleep(PORTFOLIO_SECONDS)
                # A wake-up may be lost, but not for long.
                if woken.is_set() or loop.time() - read_at >= heartbeat:
                    woken.clear()
                    held, read_at = await self._held(user_id, request.account_id), loop.time()
