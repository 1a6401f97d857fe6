"""Trading with real money: whether at all, and by which accounts."""

from tradeloom.orders.v1 import live_pb2, live_pb2_grpc

from libs.mesh.requests import answer_once, key_of
from libs.store.database import Connection, Database
from services.orders import live, live_store, market, wire
from services.orders.servicer.desk import own_account


class LiveTradingServicer(live_pb2_grpc.LiveTradingServiceServicer):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def GetLiveTrading(self, request, context):
        async with self._database.transaction() as rows:
            found = await live_store.find_live_trading(rows)
        return live_pb2.GetLiveTradingResponse(live_trading=wire.live_trading_to_proto(found))

    async def SetLiveTrading(self, request, context):
        async def work(rows: Connection) -> live_pb2.SetLiveTradingResponse:
            kept = await live_store.put_live_trading(
                rows, enabled=request.enabled, reason=request.reason, now=market.now()
            )
            return live_pb2.SetLiveTradingResponse(live_trading=wire.live_trading_to_proto(kept))

        return await answer_once(self._database, key_of(request), live_pb2.SetLiveTradingResponse, work)

    async def ConfirmLiveTrading(self, request, context):
        async def work(rows: Connection) -> live_pb2.ConfirmLiveTradingResponse:
            account = await own_account(rows, request.account_id, lock=True)
            # Under the lock: what users tells of the key at this moment was read before, or stops the account after.
            confirmed = live.confirm(account, await live_store.find_credential(rows, account.account_id))
            await live_store.change_account(rows, account, confirmed)
            return live_pb2.ConfirmLiveTradingResponse(account=wire.account_to_proto(confirmed))

        return await answer_once(self._database, key_of(request), live_pb2.ConfirmLiveTradingResponse, work)

    async def StopLiveTrading(self, request, context):
        async def work(rows: Connection) -> live_pb2.StopLiveTradingResponse:
            account = await own_account(rows, request.account_id, lock=True)
            stopped = live.stop(account)
            await live_store.change_account(rows, account, stopped)
            return live_pb2.StopLiveTradingResponse(account=wire.account_to_proto(stopped))

        return await answer_once(self._database, key_of(request), live_pb2.StopLiveTradingResponse, work)
