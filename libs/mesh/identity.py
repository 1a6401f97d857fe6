"""Who is calling: the user of a verified access token, and the service of a verified certificate."""

from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import unquote
from uuid import UUID

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from grpc import aio

from libs.errors import Unauthenticated, Unavailable
from libs.tokens import ALGORITHM, AUDIENCE, CLOCK_SKEW_SECONDS, ISSUER

VERIFIED_TOKENS_MAX = 10_000
# Names the user for whom a service acts; believed from services that the method's policy names, and stripped at the edge.
ON_BEHALF = "x-tradeloom-user"
TRUST_DOMAIN = "spiffe://tradeloom/svc/"

Keys = Mapping[str, Ed25519PublicKey]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The user on whose behalf a call is made.

    Without a session (session_id None) a service named the user.
    """

    user_id: UUID
    session_id: UUID | None
    roles: frozenset[str]
    scopes: frozenset[str]
    entitlements: frozenset[str]
    generation: int | None
    """Of the user's tokens: it rises with every change of what they may do. None where a service named the user."""
    expire_time: datetime
    second_factor_time: datetime | None
    enrolled: bool = False
    """Whether the user has set up a second factor."""
    email_verified: bool = False
    quotas: Mapping[str, int] = field(default_factory=dict)
    """How much of each the plan allows; of what is not named, nothing."""
    account_ids: frozenset[UUID] | None = None
    """The only accounts that an API key may see and trade; None for all of the user's."""
    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    """The only networks from which an API key may be used; none for everywhere."""

    def may_use_account(self, account_id: UUID) -> bool:
        return self.account_ids is None or account_id in self.account_ids

    def may_come_from(self, address: str) -> bool:
        return not self.networks or is_within(address, self.networks)


def is_within(address: str, networks: Iterable[IPv4Network | IPv6Network]) -> bool:
    """Whether the address belongs to one of the networks; what is no address belongs to none."""
    try:
        found = ip_address(address)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return any((mapped or found) in network for network in networks)


_current: ContextVar[Identity] = ContextVar("identity")


def current() -> Identity:
    """The identity of the call being served; a method that anyone may call has none (LookupError)."""
    return _current.get()


def current_or_none() -> Identity | None:
    """The same, where a method that anyone may call goes the same way."""
    return _current.get(None)


def for_user(user_id: UUID) -> tuple[tuple[str, str], ...]:
    """What a service's call carries to act for this user, where the method's policy lets that service."""
    return ((ON_BEHALF, str(user_id)),)


def peer_of(context: aio.ServicerContext) -> str:
    """The word of the service at the other end, out of its certificate; "" without one."""
    name = next(iter(context.auth_context().get("peer_spiffe_id", ())), b"").decode()
    return name.removeprefix(TRUST_DOMAIN) if name.startswith(TRUST_DOMAIN) else ""


def address_of(context: aio.ServicerContext) -> str:
    """The caller's address without a port, as the edge saw it; a header is believed from the edge only."""
    if peer_of(context) == "edge":
        for key, value in context.invocation_metadata() or ():
            if key == "x-envoy-external-address":
                return str(value)
    # Such as "ipv4:127.0.0.1:43210" or "ipv6:%5B::1%5D:43210".
    return unquote(context.peer()).split(":", 1)[-1].rpartition(":")[0].strip("[]")


def network_of(address: str) -> str:
    """What a caller is counted by: of IPv6 the /64, for everybody has one whole and would never run out of addresses."""
    try:
        found = IPv6Address(address)
    except ValueError:
        return address
    return str(found.ipv4_mapped or IPv6Network((int(found), 64), strict=False))


class Verifier:
    """Verifies access tokens with auth's public keys, each token once."""

    def __init__(self) -> None:
        self._keys: dict[str, Ed25519PublicKey] = {}
        self._verified: dict[str, Identity] = {}

    def use(self, keys: Keys) -> None:
        """Takes auth's current keys; tokens of a key that is gone count no more."""
        if self._keys.keys() - keys.keys():
            self._verified.clear()
        self._keys = dict(keys)

    def check(self) -> None:
        """Raises Unavailable while there are no keys."""
        if not self._keys:
            raise Unavailable("auth's keys are not known yet", dependency="auth")

    def verify(self, token: str, now: datetime) -> Identity:
        """Raises Unauthenticated for a token that auth did not sign for us, or that has expired."""
        self.check()
        identity = self._verified.get(token)
        if identity is None:
            identity = self._verify(token)
            if len(self._verified) >= VERIFIED_TOKENS_MAX:
                self._verified.pop(next(iter(self._verified)))
            self._verified[token] = identity
        if identity.expire_time <= now:
            self._verified.pop(token, None)
            raise Unauthenticated("the access token has expired")
        return identity

    def _verify(self, token: str) -> Identity:
        try:
            key = self._keys[jwt.get_unverified_header(token)["kid"]]
            claims = jwt.decode(
                token,
                key,
                algorithms=[ALGORITHM],
                issuer=ISSUER,
                audience=AUDIENCE,
                leeway=CLOCK_SKEW_SECONDS,
                options={"require": ["iss", "aud", "sub", "sid", "gen", "iat", "exp"]},
            )
            factor, accounts = claims.get("mfa_time"), claims.get("accounts")
            return Identity(
                user_id=UUID(claims["sub"]),
                session_id=UUID(claims["sid"]),
                roles=frozenset(claims.get("roles", ())),
                scopes=frozenset(claims.get("scopes", ())),
                entitlements=frozenset(claims.get("entitlements", ())),
                generation=int(claims["gen"]),
                expire_time=datetime.fromtimestamp(claims["exp"], UTC),
                second_factor_time=datetime.fromtimestamp(factor, UTC) if factor else None,
                enrolled=claims.get("mfa") is True,
                email_verified=claims.get("email_verified") is True,
                quotas={str(name): int(most) for name, most in claims.get("quotas", {}).items()},
                account_ids=None if accounts is None else frozenset(map(UUID, accounts)),
                networks=tuple(map(ip_network, claims.get("networks", ()))),
            )
        except (
            jwt.InvalidTokenError,
            KeyError,
            ValueError,
            TypeError,
            AttributeError,
            OverflowError,
            OSError,
        ) as error:
            raise Unauthenticated("the access token is not valid") from error
