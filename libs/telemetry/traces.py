"""Spans in OpenTelemetry's form, where a collector is named; a single `if` per call where not."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind

TRACES_PATH = "/v1/traces"
"""Where, below its endpoint, a collector takes spans over OTLP/HTTP."""

_tracer: trace.Tracer | None = None


def set_up(word: str, endpoint: str, sample_ratio: float) -> None:
    """Sends spans to the collector at an OTLP/HTTP endpoint, such as "http://127.0.0.1:4318"."""
    if not endpoint:
        return
    # Only a process that traces pays for these imports.
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    provider = TracerProvider(
        resource=Resource.create({"service.name": word, "service.namespace": "tradeloom"}),
        sampler=ParentBasedTraceIdRatio(sample_ratio),
    )
    # The collector is one of ours: a proxy for the world outside does not lead to it.
    session = requests.Session()
    session.trust_env = False
    exporter = OTLPSpanExporter(endpoint=endpoint.rstrip("/") + TRACES_PATH, session=session)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    global _tracer  # noqa: PLW0603 (one per process, set at the start)
    _tracer = provider.get_tracer("tradeloom")


@contextmanager
def serving(path: str, metadata: Mapping[str, str | bytes]) -> Iterator[None]:
    """A span around a call being served, under the caller's."""
    if _tracer is None:
        yield
        return
    carrier = {key: value for key, value in metadata.items() if isinstance(value, str)}
    with _tracer.start_as_current_span(path.lstrip("/"), context=propagate.extract(carrier), kind=SpanKind.SERVER):
        yield


def are_collected() -> bool:
    return _tracer is not None


def carried() -> tuple[tuple[str, str], ...]:
    """The metadata by which a called service continues the current span's trace; none outside of a call being served."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple(carrier.items())
