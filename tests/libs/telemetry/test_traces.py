"""Spans before a real collector: where they arrive, how many, and under whom."""

import pytest

from libs.telemetry import traces
from tests.libs.telemetry.collector import Collector, caller

EVERYTHING = 1.0
NOTHING = 0.0


@pytest.mark.parametrize("slash", ["", "/"])
def test_spans_arrive_where_a_collector_takes_them_whatever_proxy_is_set(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, slash: str
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    traces.set_up("orders", collector.url + slash, EVERYTHING)

    with traces.serving("/tradeloom.orders.v1.OrderService/GetOrder", {}):
        pass

    span = collector.until("tradeloom.orders.v1.OrderService/GetOrder")
    assert collector.paths == {"/v1/traces"}
    assert span.service == "orders"
    assert span.parent_span_id == ""


def test_the_share_that_is_traced_is_the_one_that_was_set(collector: Collector) -> None:
    traces.set_up("orders", collector.url, 0.5)

    for _ in range(400):
        with traces.serving("/drawn", {}):
            pass
    _, _, carried = caller(sampled=True)
    with traces.serving("/last", carried):
        pass

    collector.until("last")
    # Ten standard deviations on either side.
    assert 100 < len([span for span in collector.spans if span.name == "drawn"]) < 300


def test_a_callers_trace_is_continued_and_its_choice_is_kept(collector: Collector) -> None:
    traces.set_up("orders", collector.url, NOTHING)
    trace_id, span_id, chosen = caller(sampled=True)

    for carried in ({}, caller(sampled=False)[2]):
        with traces.serving("/not-chosen", carried):
            pass
    with traces.serving("/chosen", chosen):
        pass

    span = collector.until("chosen")
    assert (span.trace_id, span.parent_span_id) == (trace_id, span_id)
    assert collector.spans == [span]
