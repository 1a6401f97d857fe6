"""Calls counted and timed by method; served at /metrics of the probe port."""

import functools
from dataclasses import dataclass

import grpc
from prometheus_client import Counter, Gauge, Histogram

from libs.mesh.contract import Method

BUCKETS_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
HANDLED = Counter("tradeloom_rpc_handled", "Calls that ended, by method and code.", ["service", "method", "code"])
SECONDS = Histogram(
    "tradeloom_rpc_seconds",
    "How long calls took, streams their whole life.",
    ["service", "method"],
    buckets=BUCKETS_SECONDS,
)
IN_FLIGHT = Gauge("tradeloom_rpc_in_flight", "Calls being served.", ["service", "method"])


@dataclass(frozen=True, slots=True)
class Measured:
    """The series of one method, looked up once."""

    service: str
    method: str
    seconds: Histogram
    in_flight: Gauge

    def handled(self, code: grpc.StatusCode | int) -> None:
        counter(self.service, self.method, code.name if isinstance(code, grpc.StatusCode) else str(code)).inc()


@functools.cache
def counter(service: str, method: str, code: str) -> Counter:
    return HANDLED.labels(service, method, code)


@functools.cache
def of(method: Method) -> Measured:
    names = (method.word, method.name)
    return Measured(*names, SECONDS.labels(*names), IN_FLIGHT.labels(*names))
