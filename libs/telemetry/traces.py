"""Spans in OpenTelemetry's form, where a collector is named; a single `if` per call where not."""

from collections.abc import Iterator, Mapping, MutableSequence
from contextlib import contextmanager

from opentelemetry import propagate, trace
from opentelemetry.trace import SpanKind

_tracer: trace.Tracer | None = None


def set_up(word: str, endpoint: str, sample_ratio: float) -> None:
    """Sends spans to the collector's OTLP/HTTP endpoint, such as "http://127.0.0.1:4318/v1/traces"."""
    if not endpoint:
        return
    # Only a process that traces pays for these imports.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio

    provider = TracerProvider(
        resource=Resource.create({"service.name": word, "service.namespace": "tradeloom"}),
        sampler=ParentBasedTraceIdRatio(sample_ratio),
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    trace.set_tracer_provider(provider)
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


def carry(metadata: MutableSequence[tuple[str, str]]) -> None:
    """Adds the current span to an outgoing call's metadata."""
    if _tracer is not None:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        metadata.extend(carrier.items())
