"""What signing in costs beside its password hash alone, and what knowing the caller costs beside a call that asks nobody."""

import asyncio
import base64
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import jwt
from argon2 import PasswordHasher
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from grpc import aio
from tradeloom.auth.v1 import auth_pb2, auth_pb2_grpc

from bench.baselines import BARE, KEY_ID, KNOWN, PUBLIC_KEY
from bench.load import Call, Load, warmed
from bench.rounds import Form, Report, Values, alternate, series
from bench.stack import Stack
from libs.cli.client import CALL_SECONDS
from libs.ids import uuid7
from libs.mesh.identity import ALGORITHM, AUDIENCE, ISSUER, VERIFIED_TOKENS_MAX, Verifier

MANY = 16
GUESSES_PER_SECOND, GUESSES_PER_SECOND_SHORT = 200, 20
"""Ten thousand in fifty seconds."""
GUESSES_AT_ONCE_MAX = 50
HASHES_AT_ONCE = 2
"""As the service's setting has it."""
CHANNELS = 4
TOKENS = VERIFIED_TOKENS_MAX + 2_000
"""More than a verifier remembers: when the first comes again it is as new."""
TOKENS_SHORT = 50
REQUEST = auth_pb2.GetMeRequest().SerializeToString()


async def bench(stack: Stack, form: Form) -> Report:
    report = Report("auth", form)
    await logins(stack, form, report)
    await tokens(stack, form, report)
    report.limits = (
        "Client and service share the cores with Postgres; a hash takes a whole core for as long as it lasts, and as "
        f"many as {HASHES_AT_ONCE} run at once on either side."
    )
    return report


async def logins(stack: Stack, form: Form, report: Report) -> None:
    people = [await register(stack) for _ in range(2 if form.is_short else MANY)]
    stubs = [auth_pb2_grpc.AuthServiceStub(stack.direct("auth")) for _ in range(CHANNELS)]
    hasher = PasswordHasher()
    password = secrets.token_urlsafe(24)
    hashed = hasher.hash(password)

    def login(number: int) -> Call:
        email, its_password = people[number % len(people)]
        request = auth_pb2.LoginRequest(email=email, password=its_password)
        return partial(stubs[number % CHANNELS].Login, request, timeout=CALL_SECONDS)

    async def hash_alone() -> None:
        await asyncio.to_thread(hasher.verify, hashed, password)

    for callers in (1, len(people)):
        sides: dict[str, Sequence[Call]] = {
            "login": [login(number) for number in range(callers)],
            "argon2": [hash_alone] * min(callers, HASHES_AT_ONCE),
        }

        async def measure(side: str, sides: dict[str, Sequence[Call]] = sides) -> Values:
            return (await warmed(sides[side], form.seconds)).values()

        measured = await alternate({side: partial(measure, side) for side in sides}, form.rounds)
        compare(report, "login", "argon2", callers, measured, "logins/s")

    guessed = await register(stack)
    per_second = GUESSES_PER_SECOND_SHORT if form.is_short else GUESSES_PER_SECOND

    async def undisturbed() -> Values:
        return (await warmed([login(0)], form.seconds)).values()

    async def attacked() -> Values:
        async with guesses(stubs[-1], guessed[0], per_second):
            return await undisturbed()

    measured = await alternate({"attacked": attacked, "undisturbed": undisturbed}, form.rounds)
    compare(report, "attacked", "undisturbed", 1, measured, "logins/s")


@asynccontextmanager
async def guesses(stub: auth_pb2_grpc.AuthServiceStub, email: str, per_second: float) -> AsyncIterator[None]:
    """Wrong passwords at somebody's account during the block, as many a second, all of them answered by then."""
    places, under_way = asyncio.Semaphore(GUESSES_AT_ONCE_MAX), set()

    async def guess() -> None:
        async with places:
            with suppress(aio.AioRpcError):
                await stub.Login(
                    auth_pb2.LoginRequest(email=email, password=secrets.token_hex(12)), timeout=CALL_SECONDS
                )

    async def attack() -> None:
        began = time.perf_counter()
        for number in itertools.count(1):
            under_way.add(task := asyncio.create_task(guess()))
            task.add_done_callback(under_way.discard)
            await asyncio.sleep(began + number / per_second - time.perf_counter())

    attacking = asyncio.create_task(attack())
    try:
        yield
    finally:
        attacking.cancel()
        await asyncio.gather(attacking, *under_way, return_exceptions=True)


async def register(stack: Stack) -> tuple[str, str]:
    email, password = f"bench-{uuid7()}@tradeloom.local", secrets.token_urlsafe(24)
    auth = auth_pb2_grpc.AuthServiceStub(stack.direct("auth"))
    await auth.Register(auth_pb2.RegisterRequest(email=email, password=password), timeout=CALL_SECONDS)
    return email, password


async def tokens(stack: Stack, form: Form, report: Report) -> None:
    key = Ed25519PrivateKey.generate()
    minted = [mint(key) for _ in range(TOKENS_SHORT if form.is_short else TOKENS)]
    public_key = base64.b64encode(key.public_key().public_bytes_raw()).decode()
    await verifications(form, report, key, minted)
    async with stack.baselines(environment={PUBLIC_KEY: public_key}) as beside:
        channels = [stack.direct("orders", beside.port) for _ in range(CHANNELS)]
        for callers in (1, MANY):
            sides: dict[str, Sequence[Call]] = {
                "bare": [calling(channels[number % CHANNELS], BARE, minted[:1]) for number in range(callers)],
                "seen": [calling(channels[number % CHANNELS], KNOWN, minted[:1]) for number in range(callers)],
                "new": [
                    calling(channels[number % CHANNELS], KNOWN, minted[number::callers]) for number in range(callers)
                ],
            }

            async def measure(side: str, sides: dict[str, Sequence[Call]] = sides) -> Values:
                return (await warmed(sides[side], form.seconds)).values()

            measured = await alternate({side: partial(measure, side) for side in sides}, form.rounds)
            for subject in ("seen", "new"):
                compare(report, subject, "bare", callers, measured, "calls/s")


async def verifications(form: Form, report: Report, key: Ed25519PrivateKey, minted: Sequence[str]) -> None:
    """Without any call around it: a token that was not seen before, beside its bare signature."""
    public_key = key.public_key()
    signed = [
        (base64.urlsafe_b64decode(one.rpartition(".")[2] + "=="), one.rpartition(".")[0].encode()) for one in minted
    ]

    async def measure(verify_each: Callable[[Verifier, int], object]) -> Values:
        verifier = Verifier()
        verifier.use({KEY_ID: public_key})
        began, latencies = time.perf_counter(), []
        for number in itertools.count():
            started = time.perf_counter()
            if started - began > form.seconds:
                break
            verify_each(verifier, number % len(minted))
            latencies.append(time.perf_counter() - started)
        return Load(latencies, time.perf_counter() - began).values()

    def whole(verifier: Verifier, number: int) -> object:
        if number == 0:
            verifier.use({})  # forgets what it has seen
            verifier.use({KEY_ID: public_key})
        return verifier.verify(minted[number], datetime.now(UTC))

    def signature(_: Verifier, number: int) -> object:
        return public_key.verify(*signed[number])

    measured = await alternate(
        {"token": partial(measure, whole), "signature": partial(measure, signature)}, form.rounds
    )
    report.compare(
        "verification_vs_signature",
        "a new token verified, in the process",
        subject=series(measured["token"], "throughput"),
        baseline=series(measured["signature"], "throughput"),
        unit="tokens/s",
        of="signature",
    )
    report.note("verifications_per_second", series(measured["token"], "throughput"))


def calling(channel: aio.Channel, path: str, carried: Sequence[str]) -> Call:
    """A caller that carries the next of these tokens each time."""
    method = channel.unary_unary(path)
    in_turn = itertools.cycle([(("authorization", f"Bearer {token}"),) for token in carried])

    def call() -> Awaitable[object]:
        return method(REQUEST, metadata=next(in_turn))

    return call


def mint(key: Ed25519PrivateKey) -> str:
    now = datetime.now(UTC)
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": str(uuid7()),
        "sid": str(uuid7()),
        "roles": ["user"],
        "scopes": ["account", "read", "trade"],
        "entitlements": ["live_trading"],
        "quotas": {"api_keys": 2, "backtests_per_day": 20},
        "gen": 0,
        "iat": int(now.timestamp()),
        "exp": int((now + timedelta(hours=1)).timestamp()),
    }
    return jwt.encode(claims, key, algorithm=ALGORITHM, headers={"kid": KEY_ID})


def compare(
    report: Report, subject: str, baseline: str, callers: int, measured: dict[str, list[Values]], unit: str
) -> None:
    value = "p50" if callers == 1 else "throughput"
    many = "1 caller" if callers == 1 else f"{callers} callers"
    report.compare(
        f"{subject}_{value}_vs_{baseline}",
        f"{WHAT[subject]}, {value}, {many}",
        subject=series(measured[subject], value),
        baseline=series(measured[baseline], value),
        unit="ms" if value == "p50" else unit,
        of=baseline,
    )
    for side in (subject, baseline):
        report.note(f"{side}_{value}_at_{callers}", series(measured[side], value))


WHAT = {
    "login": "Login",
    "attacked": "Login while 200 wrong passwords a second go at another account",
    "seen": "a call with a token seen before",
    "new": "a call with a new token each time",
}
