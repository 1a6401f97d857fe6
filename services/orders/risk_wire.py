"""Translates between the risk API and the risk domain."""

from collections.abc import Mapping
from dataclasses import fields
from decimal import Decimal

from tradeloom.orders.v1 import risk_pb2

from libs.mesh.wire import decimal_from_proto, decimal_to_proto, timestamp
from services.orders.domain import KillSwitch, Lock, RiskEvent, RiskLimits, Scope, Switch
from services.orders.risk import COUNTS

LIMIT_NAMES = [field.name for field in fields(RiskLimits)]
MODES = {risk_pb2.KillSwitchMode.Value(f"KILL_SWITCH_MODE_{switch.name}"): switch for switch in Switch}
MODE_TO_PROTO = {switch: number for number, switch in MODES.items()}
SCOPE_TO_PROTO = {scope: risk_pb2.KillSwitchScope.Value(f"KILL_SWITCH_SCOPE_{scope.name}") for scope in Scope}
LOCK_TO_PROTO = {lock: risk_pb2.RiskLock.Value(f"RISK_LOCK_{lock.name}") for lock in Lock}


def limits_from_proto(message: risk_pb2.RiskLimits) -> dict[str, Decimal]:
    """What is set, by name."""
    return {
        name: Decimal(getattr(message, name)) if name in COUNTS else decimal_from_proto(getattr(message, name))
        for name in LIMIT_NAMES
        if message.HasField(name)  # type: ignore[arg-type] (the names are the message's)
    }


def limits_to_proto(limits: Mapping[str, Decimal | int | None]) -> risk_pb2.RiskLimits:
    message = risk_pb2.RiskLimits()
    for name, value in limits.items():
        if value is None:
            continue
        if name in COUNTS:
            setattr(message, name, int(value))
        else:
            getattr(message, name).CopyFrom(decimal_to_proto(Decimal(value)))
    return message


def effective_to_proto(limits: RiskLimits) -> risk_pb2.RiskLimits:
    return limits_to_proto({name: getattr(limits, name) for name in LIMIT_NAMES})


def switch_to_proto(switch: KillSwitch) -> risk_pb2.KillSwitch:
    return risk_pb2.KillSwitch(
        scope=SCOPE_TO_PROTO[switch.scope],
        target_id=str(switch.target_id or ""),
        mode=MODE_TO_PROTO[switch.mode],
        reason=switch.reason,
        by_operator=switch.by_operator,
        time=timestamp(switch.time),
    )


def event_to_proto(event: RiskEvent) -> risk_pb2.RiskEvent:
    return risk_pb2.RiskEvent(
        risk_event_id=str(event.risk_event_id),
        account_id=str(event.account_id or ""),
        kind=risk_pb2.RiskEventKind.Value(f"RISK_EVENT_KIND_{event.kind.upper()}"),
        limit=event.limit_name,
        value=event.value,
        bound=event.bound,
        instrument_id=event.instrument_id,
        time=timestamp(event.time),
    )
