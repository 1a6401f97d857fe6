"""What the one port costs: the same RPC through the edge, and directly to its service's mutual-TLS port."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from grpc import aio
from tradeloom.auth.v1 import auth_pb2
from tradeloom.marketdata.v1 import marketdata_pb2

from bench.load import Call, warmed
from bench.rounds import Form, Report, Values, alternate, series
from bench.stack import Stack
from libs.cli.client import Metadata

CALLERS = 32
CHANNELS = 4
USERS = 8
"""So many that nobody's allowance of calls a second is what is measured."""
INSTRUMENT_ID = "SIM:BTCUSDT"
METHODS = {
    "GetMe": ("auth", "/tradeloom.auth.v1.AuthService/GetMe", auth_pb2.GetMeRequest().SerializeToString()),
    "GetInstrument": (
        "marketdata",
        "/tradeloom.marketdata.v1.MarketDataService/GetInstrument",
        marketdata_pb2.GetInstrumentRequest(instrument_id=INSTRUMENT_ID).SerializeToString(),
    ),
}
HEADLINE = "GetInstrument"


def calls_on(
    channels: Sequence[aio.Channel], path: str, request: bytes, users: Sequence[Metadata], count: int
) -> list[Call]:
    """Callers spread over channels and users. Bytes go and come as they are: the client is to cost little."""

    def call(number: int) -> Callable[[], Awaitable[object]]:
        method = channels[number % len(channels)].unary_unary(path)
        return partial(method, request, metadata=users[number % len(users)])

    return [call(number) for number in range(count)]


async def bench(stack: Stack, form: Form) -> Report:
    report = Report("edge", form)
    users = await stack.users(1 if form.is_short else USERS)
    for name, (word, path, request) in METHODS.items():
        channels = {
            "edge": [stack.edge() for _ in range(CHANNELS)],
            "direct": [stack.direct(word) for _ in range(CHANNELS)],
        }
        for callers in (1, CALLERS):

            async def measure(side: str, callers: int = callers, path: str = path, request: bytes = request) -> Values:
                return (await warmed(calls_on(channels[side], path, request, users, callers), form.seconds)).values()  # noqa: B023 (run in this round of the loop)

            measured = await alternate({side: partial(measure, side) for side in ("direct", "edge")}, form.rounds)
            value, what, unit = ("p50", "p50", "ms") if callers == 1 else ("throughput", "throughput", "calls/s")
            subject, baseline = series(measured["edge"], value), series(measured["direct"], value)
            key = f"{value}_vs_direct"
            many = "1 caller" if callers == 1 else f"{callers} callers"
            report.compare(
                key if name == HEADLINE else f"{key}_{name}",
                f"{name}, {what}, {many}",
                subject=subject,
                baseline=baseline,
                unit=unit,
                of="direct",
            )
            for side in ("edge", "direct"):
                report.note(f"{name}_{side}_{value}", series(measured[side], value))
                report.note(f"{name}_{side}_p99_at_{callers}", series(measured[side], "p99"))
    report.limits = (
        "The client, the service and Envoy share the cores: at 32 callers the edge's side runs three busy processes, "
        "the direct side two."
    )
    return report
