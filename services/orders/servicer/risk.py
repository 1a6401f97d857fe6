"""Limits, locks and kill switches."""

from dataclasses import replace
from decimal import Decimal
from typing import Any
from uuid import UUID

from tradeloom.orders.v1 import events_pb2, risk_pb2, risk_pb2_grpc

from libs.ids import uuid7
from libs.mesh import identity, pages
from libs.mesh.requests import answer_once, key_of
from libs.mesh.wire import decimal_to_proto, timestamp
from libs.store.database import Connection, Database
from services.orders import market, risk, risk_store, risk_wire, store, use_cases
from services.orders.domain import Account, KillSwitch, RiskEvent, RiskLimits, Scope, Switch
from services.orders.market import Market
from services.orders.refusals import LimitsChanged
from services.orders.servicer.desk import USUAL_PAGE_SIZE, own_account

SWITCHED = events_pb2.KillSwitchChanged.DESCRIPTOR.full_name


async def set_switch(rows: Connection, switch: KillSwitch) -> risk_pb2.KillSwitch:
    """Sets one switch, tells it, and notes it: all in the caller's transaction."""
    kept = await risk_store.put_switch(rows, switch)
    message = risk_wire.switch_to_proto(kept)
    payload = events_pb2.KillSwitchChanged(switch=message).SerializeToString()
    await risk_store.tell_switch(rows, kept, SWITCHED, payload)
    if kept.user_id is not None:
        account_id = kept.target_id if kept.scope is Scope.ACCOUNT else None
        limit = f"kill_switch/{kept.scope.value}"
        await risk_store.add_events(rows, [noted(kept.user_id, account_id, "switched", limit, value=kept.mode.name)])
    return message


def noted(user_id: UUID, account_id: UUID | None, kind: str, limit: str, *, value: str = "") -> RiskEvent:
    return RiskEvent(
        risk_event_id=uuid7(),
        user_id=user_id,
        account_id=account_id,
        kind=kind,
        limit_name=limit,
        time=market.now(),
        value=value,
    )


class RiskServicer(risk_pb2_grpc.RiskServiceServicer):
    def __init__(self, database: Database, known: Market, usual: RiskLimits) -> None:
        """Usual are the limits of an account that has set none."""
        self._database, self._market, self._usual = database, known, usual

    async def GetRiskLimits(self, request, context):
        async with self._database.transaction(identity.current().user_id, snapshot=True) as rows:
            account = await own_account(rows, request.account_id)
            limits = (await risk_store.find_limits(rows, [account.account_id]))[account.account_id]
            equity = await self._equity(rows, account)
        return risk_pb2.GetRiskLimitsResponse(
            limits=risk_wire.limits_to_proto(limits),
            effective=risk_wire.effective_to_proto(risk.with_set(self._usual, limits)),
            standing=standing_to_proto(account, equity),
            revision=account.limits_revision,
        )

    async def SetRiskLimits(self, request, context):
        user_id = identity.current().user_id
        limits = risk_wire.limits_from_proto(request.limits)

        async def work(rows: Connection) -> risk_pb2.SetRiskLimitsResponse:
            account = await own_account(rows, request.account_id, lock=True)
            if request.HasField("expected_revision") and account.limits_revision != request.expected_revision:
                raise LimitsChanged("the limits were set since", revision=account.limits_revision)
            revision = await risk_store.put_limits(rows, account.account_id, user_id, limits)
            await risk_store.add_events(rows, [noted(user_id, account.account_id, "limits_set", "limits")])
            return risk_pb2.SetRiskLimitsResponse(
                limits=risk_wire.limits_to_proto(limits),
                effective=risk_wire.effective_to_proto(risk.with_set(self._usual, limits)),
                revision=revision,
            )

        return await answer_once(self._database, key_of(request), risk_pb2.SetRiskLimitsResponse, work)

    async def LiftRiskLocks(self, request, context):
        user_id = identity.current().user_id

        async def work(rows: Connection) -> risk_pb2.LiftRiskLocksResponse:
            account = await own_account(rows, request.account_id, lock=True)
            equity = await self._equity(rows, account)
            lifted = replace(
                account, locks=frozenset(), day_start_equity=equity, day_start_time=market.now(), peak_equity=equity
            )
            await risk_store.put_worth(rows, lifted)
            await risk_store.add_events(
                rows, [noted(user_id, account.account_id, "lifted", f"lock/{lock.value}") for lock in account.locks]
            )
            return risk_pb2.LiftRiskLocksResponse(standing=standing_to_proto(lifted, equity))

        return await answer_once(self._database, key_of(request), risk_pb2.LiftRiskLocksResponse, work)

    async def ListRiskEvents(self, request, context):
        size = pages.size_of(request.page_size, USUAL_PAGE_SIZE)
        user_id = identity.current().user_id
        async with self._database.transaction(user_id) as rows:
            account = await own_account(rows, request.account_id) if request.account_id else None
            found = await risk_store.list_events(
                rows,
                user_id,
                account.account_id if account else None,
                pages.uuid_after(request.page_token),
                size + 1,
            )
        page, more = found[:size], len(found) > size
        return risk_pb2.ListRiskEventsResponse(
            events=map(risk_wire.event_to_proto, page),
            next_page_token=pages.token_after(str(page[-1].risk_event_id)) if more else "",
        )

    async def SetKillSwitch(self, request, context):
        user_id = identity.current().user_id
        scope, target_id = Scope.USER, user_id
        if request.deployment_id:
            scope, target_id = Scope.DEPLOYMENT, UUID(request.deployment_id)
        elif request.account_id:
            scope, target_id = Scope.ACCOUNT, UUID(request.account_id)

        async def work(rows: Connection) -> risk_pb2.SetKillSwitchResponse:
            if request.account_id:
                await own_account(rows, request.account_id)
            switch = switch_of(request, scope, target_id, user_id, by_operator=False)
            return risk_pb2.SetKillSwitchResponse(switch=await set_switch(rows, switch))

        return await answer_once(self._database, key_of(request), risk_pb2.SetKillSwitchResponse, work)

    async def SetGlobalKillSwitch(self, request, context):
        target_id = UUID(request.user_id) if request.user_id else None
        scope = Scope.USER if target_id else Scope.GLOBAL

        async def work(rows: Connection) -> risk_pb2.SetGlobalKillSwitchResponse:
            switch = switch_of(request, scope, target_id, target_id, by_operator=True)
            return risk_pb2.SetGlobalKillSwitchResponse(switch=await set_switch(rows, switch))

        return await answer_once(
            self._database,
            key_of(request),
            risk_pb2.SetGlobalKillSwitchResponse,
            work,
            also=[target_id] if target_id else [],
        )

    async def GetKillSwitch(self, request, context):
        user_id = identity.current().user_id
        async with self._database.transaction(user_id) as rows:
            account = await own_account(rows, request.account_id) if request.account_id else None
            switches = await risk_store.list_switches(rows, user_id)
        if account is not None:
            switches = [each for each in switches if holds_for(each, account)]
        return risk_pb2.GetKillSwitchResponse(
            switches=map(risk_wire.switch_to_proto, switches),
            mode=risk_wire.MODE_TO_PROTO[risk.worst(each.mode for each in switches)],
        )

    async def _equity(self, rows: Connection, account: Account) -> Decimal | None:
        held = await store.balances(rows, account.account_id)
        positions = await store.backed_positions(rows, account)
        return use_cases.equity_of(account, held, positions, self._market, market.now())


def switch_of(
    request: Any, scope: Scope, target_id: UUID | None, user_id: UUID | None, *, by_operator: bool
) -> KillSwitch:
    mode = risk_wire.MODES[request.mode]
    return KillSwitch(
        scope=scope,
        target_id=target_id,
        user_id=user_id,
        mode=mode,
        reason=request.reason,
        by_operator=by_operator,
        canceling=request.cancel_open_orders and mode is not Switch.OFF,
        revision=0,
        time=market.now(),
    )


def holds_for(switch: KillSwitch, account: Account) -> bool:
    """Whether it holds for all orders of the account."""
    return switch.scope in (Scope.GLOBAL, Scope.USER) or switch.target_id == account.account_id


def standing_to_proto(account: Account, equity: Decimal | None) -> risk_pb2.RiskStanding:
    return risk_pb2.RiskStanding(
        valuation_asset=account.valuation_asset,
        equity=decimal_to_proto(equity),
        day_start_equity=decimal_to_proto(account.day_start_equity),
        day_start_time=timestamp(account.day_start_time) if account.day_start_time else None,
        peak_equity=decimal_to_proto(account.peak_equity),
        locks=sorted(risk_wire.LOCK_TO_PROTO[lock] for lock in account.locks),
    )
