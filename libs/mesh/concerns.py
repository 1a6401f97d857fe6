"""What happens around every call, outermost first: the order is the tuple at the end."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import grpc
import structlog
from google.protobuf.message import Message
from grpc import aio
from grpc_status import rpc_status
from tradeloom.policy.v1 import policy_pb2

from libs.errors import Forbidden, Invalid, Refusal, Unauthenticated
from libs.ids import uuid7
from libs.mesh import identity, metrics
from libs.mesh.around import Call, Concern, Onward
from libs.mesh.errors import Defect, away, to_status
from libs.mesh.identity import ON_BEHALF, Identity, Verifier
from libs.mesh.limits import Limiter
from libs.mesh.rules import violations
from libs.mesh.sessions import Sessions
from libs.telemetry import traces

log = structlog.get_logger(__name__)

STEP_UP_SECONDS = 300
# Who may bring a person's access token. Any other service that has seen one gains nothing by it: it acts for a person
# only by naming him, where the method's policy lets it.
TOKEN_BRINGERS = ("edge", "operator")
# The role a refusal names comes first.
ROLES = {policy_pb2.ACCESS_OPERATOR: ("operator", "admin"), policy_pb2.ACCESS_ADMIN: ("admin",)}
SCOPES = {policy_pb2.SCOPE_READ: "read", policy_pb2.SCOPE_TRADE: "trade", policy_pb2.SCOPE_ACCOUNT: "account"}


class EntitlementMissing(Forbidden):
    """The plan does not include what the method needs."""

    reason = "ENTITLEMENT_MISSING"


class StepUpRequired(Forbidden):
    """The method needs a second factor of the last five minutes."""

    reason = "STEP_UP_REQUIRED"


class EmailNotVerified(Forbidden):
    """The method needs an e-mail address that its owner has verified."""

    reason = "EMAIL_NOT_VERIFIED"


class AddressNotAllowed(Forbidden):
    """The API key may not be used from there."""

    reason = "ADDRESS_NOT_ALLOWED"


@dataclass(frozen=True, slots=True)
class Concerns:
    """The concerns of one service; limiters by the policy's limit."""

    word: str
    verifier: Verifier
    sessions: Sessions
    limiters: Mapping[int, Limiter]

    async def measuring(self, call: Call, onward: Onward) -> Any:
        """Counts the call by method and code, and times it."""
        measured = metrics.of(call.method)
        started = time.perf_counter()
        measured.in_flight.inc()
        left = False
        try:
            return await onward(call)
        except (asyncio.CancelledError, GeneratorExit):
            left = True  # the caller, or its patience ended
            raise
        finally:
            measured.in_flight.dec()
            measured.seconds.observe(time.perf_counter() - started)
            measured.handled(grpc.StatusCode.CANCELLED if left else call.context.code() or grpc.StatusCode.OK)

    async def tracing(self, call: Call, onward: Onward) -> Any:
        """Continues the caller's trace, where traces are collected."""
        if not traces.are_collected():
            return await onward(call)
        with traces.serving(call.method.path, call.metadata):
            return await onward(call)

    async def refusing(self, call: Call, onward: Onward) -> Any:
        """Turns a refusal into its status; a defect into INTERNAL with an id that the log has too."""
        try:
            return await onward(call)
        except Refusal as refusal:
            await self._refuse(call, refusal)
        except (aio.AbortError, asyncio.CancelledError, GeneratorExit):
            raise
        except Exception as error:
            if refusal := away(error):
                log.warning("a dependency is away", method=call.method.path, error=repr(error))
                await self._refuse(call, refusal)  # raises
            error_id = str(uuid7())
            log.exception("defect", method=call.method.path, error_id=error_id)
            await self._refuse(call, Defect("a defect; the service's log has the error_id", error_id=error_id))

    async def _refuse(self, call: Call, refusal: Refusal) -> None:
        await call.context.abort_with_status(rpc_status.to_status(to_status(refusal, self.word)))

    async def identifying(self, call: Call, onward: Onward) -> Any:
        """Verifies who is calling and keeps it at hand for `libs.mesh.identity.current`."""
        access = call.method.policy.access
        # A method for services has a user only where one is named.
        nobody = access == policy_pb2.ACCESS_SERVICE and ON_BEHALF not in call.metadata
        if access == policy_pb2.ACCESS_PUBLIC or nobody:
            return await onward(call)
        call.identity = self._identify(call)
        token = identity._current.set(call.identity)  # noqa: SLF001 (set here only)
        try:
            return await onward(call)
        finally:
            identity._current.reset(token)  # noqa: SLF001

    def _identify(self, call: Call) -> Identity:
        if named := call.metadata.get(ON_BEHALF):
            return on_behalf(str(named), call.peer, call.method.policy)
        if call.peer not in TOKEN_BRINGERS:
            raise Forbidden("this service may not bring a token", needs=f"service:{','.join(TOKEN_BRINGERS)}")
        scheme, _, token = str(call.metadata.get("authorization", "")).partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("an access token is needed: authorization: Bearer …")
        found = self.verifier.verify(token, datetime.now(UTC))
        self.sessions.check(found, writes=not call.method.reads_only)
        if found.networks and not found.may_come_from(address := identity.address_of(call.context)):
            raise AddressNotAllowed("the API key may not be used from this address", address=address)
        return found

    async def permitting(self, call: Call, onward: Onward) -> Any:
        """Enforces the method's policy."""
        permit(call.method.policy, call.identity, call.peer)
        return await onward(call)

    async def limiting(self, call: Call, onward: Onward) -> Any:
        """Counts the call against the caller's allowance."""
        if limiter := self.limiters.get(call.method.policy.limit):
            limiter.take(call.caller)
        return await onward(call)

    async def ending(self, call: Call, onward: Onward) -> Any:
        """Ends a stream whose token expires, whose session ends, or whose process drains."""
        if not call.method.server_streams:
            return await onward(call)
        found = call.identity
        with self.sessions.stream(found, call.caller, call.end):
            expiry = None
            if found is not None:
                seconds = (found.expire_time - datetime.now(UTC)).total_seconds()
                expired = Unauthenticated("the access token has expired; resume with a new one")
                expiry = asyncio.get_running_loop().call_later(max(0.0, seconds), call.end, expired)
            try:
                return await onward(call)
            finally:
                if expiry:
                    expiry.cancel()

    async def checking(self, call: Call, onward: Onward) -> Any:
        """Holds the request against the rules beside its fields."""
        if call.request is not None:
            check(call.request)
        return await onward(call)

    def in_order(self) -> Sequence[Concern]:
        """Outermost first. Refusals are measured and traced; nobody unknown costs an allowance of somebody known."""
        return (
            self.measuring,
            self.tracing,
            self.refusing,
            self.identifying,
            self.permitting,
            self.limiting,
            self.checking,
            self.ending,
        )


def check(message: Message) -> None:
    if found := violations(message):
        raise Invalid(found)


def permit(policy: policy_pb2.Policy, caller: Identity | None, peer: str) -> None:
    """Raises Forbidden unless the policy lets the caller, and the service at the other end, in."""
    if policy.access == policy_pb2.ACCESS_PUBLIC:
        # Past the edge's limits nobody guesses passwords with a service's certificate.
        if peer not in TOKEN_BRINGERS and peer not in policy.services:
            raise Forbidden("the method is for people", needs=f"service:{','.join(TOKEN_BRINGERS)}")
        return
    if policy.access == policy_pb2.ACCESS_SERVICE:
        if peer not in policy.services:
            raise Forbidden("the method is for other services", needs=f"service:{','.join(policy.services)}")
        return
    if caller is None or policy.access == policy_pb2.ACCESS_UNSPECIFIED:
        raise Forbidden("the method is not for callers", needs="policy")
    roles = ROLES.get(policy.access)
    if roles and caller.roles.isdisjoint(roles):
        raise Forbidden("the method is for other roles", needs=f"role:{roles[0]}")
    if (scope := SCOPES[policy.scope]) not in caller.scopes:
        raise Forbidden(f"the token may not {scope}", needs=f"scope:{scope}")
    if policy.entitlement and policy.entitlement not in caller.entitlements:
        raise EntitlementMissing("the plan does not include this", entitlement=policy.entitlement)
    if policy.verified_email and not caller.email_verified:
        raise EmailNotVerified("the e-mail address must be verified first")
    if policy.step_up == policy_pb2.STEP_UP_ALWAYS or (policy.step_up and caller.enrolled):
        factor_time = caller.second_factor_time
        if factor_time is None or datetime.now(UTC) - factor_time > timedelta(seconds=STEP_UP_SECONDS):
            raise StepUpRequired("a fresh second factor is needed")


def on_behalf(named: str, peer: str, policy: policy_pb2.Policy) -> Identity:
    """The user whom a service names, if the policy lets that service name one."""
    if peer not in policy.services:
        raise Forbidden("this service may not act for a user here", needs=f"service:{','.join(policy.services)}")
    try:
        user_id = UUID(named)
    except ValueError:
        raise Unauthenticated(f"{ON_BEHALF} is not a user id") from None
    return Identity(
        user_id=user_id,
        session_id=None,
        roles=frozenset({"user"}),
        scopes=frozenset(SCOPES.values()),
        entitlements=frozenset(),
        generation=None,
        expire_time=datetime.max.replace(tzinfo=UTC),
        second_factor_time=None,
    )
