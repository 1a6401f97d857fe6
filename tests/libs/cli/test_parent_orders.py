"""`tradeloom parent-orders` and `tradeloom live`: what they refuse before anybody is asked, and what they print."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as Packed
from google.rpc import error_details_pb2, status_pb2
from grpc import aio
from rich.console import Console
from tradeloom.execution.v1 import execution_pb2
from tradeloom.orders.v1 import orders_pb2, parents_pb2
from typer.testing import CliRunner

from libs.cli import live, parent_orders
from libs.cli.parent_orders import decimal, facts_of, is_held_up, progress_of, seconds_of, table_of, title_of
from libs.cli.person import why
from libs.stack.errors import StackError

DCA = parents_pb2.ParentOrder(
    parent_order_id="p1",
    instrument_id="SIM:BTCUSDT",
    side=orders_pb2.ORDER_SIDE_BUY,
    state=parents_pb2.PARENT_ORDER_STATE_ACTIVE,
    dca=parents_pb2.Dca(amount=decimal("100"), interval_seconds=86_400, purchases=30),
    slices=30,
    slice_number=3,
    fee_asset="USDT",
)
ICEBERG = parents_pb2.ParentOrder(
    parent_order_id="p2",
    instrument_id="SIM:BTCUSDT",
    side=orders_pb2.ORDER_SIDE_SELL,
    state=parents_pb2.PARENT_ORDER_STATE_FAILED,
    reason="CHILD_REJECTED",
    iceberg=parents_pb2.Iceberg(quantity=decimal("2"), display_quantity=decimal("0.5")),
    slices=4,
    filled_quantity=decimal("0.5"),
)


def refused(app: Any, *arguments: str) -> str:
    """What ends the command before it looks for a stack, of which there is none."""
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, StackError), result.output
    return str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("twap", "a", "i", "--quantity", "1", "--every", "5m"), "--over or --end"),
        (("twap", "a", "i", "--quantity", "1", "--every", "5m", "--over", "1h", "--end", "2027-01-31"), "not both"),
        (("twap", "a", "i", "--quantity", "1", "--every", "5", "--over", "1h"), "--every is no time such as 30s"),
        (("twap", "a", "i", "--quantity", "1", "--every", "5m", "--end", "soon"), "--end is no time"),
        (("dca", "a", "i", "--every", "1d", "--purchases", "3"), "--amount or --quantity"),
        (("dca", "a", "i", "--every", "1d", "--amount", "1", "--quantity", "1", "--purchases", "3"), "not both"),
        (("dca", "a", "i", "--every", "1d", "--amount", "1"), "--purchases or --end"),
        (("dca", "a", "i", "--every", "0d", "--amount", "1", "--purchases", "3"), "--every is no time"),
    ],
)
def test_what_does_not_go_together_is_said_before_anybody_is_asked(
    arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TRADELOOM_DATA_DIR", str(tmp_path))
    assert said in refused(parent_orders.app, *arguments)


def test_a_key_is_never_an_argument(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRADELOOM_DATA_DIR", str(tmp_path))
    assert "asked for on a terminal" in refused(live.app, "put-key", "Main")


def test_times_between_slices_have_a_unit() -> None:
    assert [seconds_of(text, "--every") for text in ("30s", "5m", "2h", "7d")] == [30, 300, 7_200, 604_800]


def test_a_parent_order_reads_as_what_it_is() -> None:
    assert title_of(DCA) == "buy SIM:BTCUSDT for 100 USDT by dca"
    assert title_of(ICEBERG) == "sell 2 SIM:BTCUSDT by iceberg"
    assert (progress_of(DCA), progress_of(ICEBERG)) == ("3 of 30 purchases", "0.5 of 2")
    assert ("state", "failed, CHILD_REJECTED") in facts_of(ICEBERG)
    refusal = parents_pb2.ChildRefusal(slice_number=4, reason="TRADING_HALTED", message="halted")
    held_up = parents_pb2.ParentOrder(refusal=refusal)
    held_up.MergeFrom(DCA)
    assert is_held_up(held_up)
    assert not is_held_up(DCA)
    assert ("held up", "slice 4: halted (TRADING_HALTED)") in facts_of(held_up)
    console = Console(width=200)
    with console.capture() as printed:
        console.print(table_of([held_up, ICEBERG]))
    assert "active, held up" in printed.get()
    assert "p2" in printed.get()


def rpc_error(code: grpc.StatusCode, reason: str, **violations: str) -> aio.AioRpcError:
    """As a service of ours refuses."""
    info = error_details_pb2.ErrorInfo(reason=reason, domain="orders.tradeloom")
    fields = [error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in violations.items()]
    status = status_pb2.Status(code=code.value[0], message="refused")
    for detail in (info, error_details_pb2.BadRequest(field_violations=fields)):
        packed = Packed()
        packed.Pack(detail)
        status.details.append(packed)
    trailing = aio.Metadata(("grpc-status-details-bin", status.SerializeToString()))
    return aio.AioRpcError(code, aio.Metadata(), trailing, details="refused")


def test_a_refusal_names_its_reason_and_every_field() -> None:
    refusal = rpc_error(grpc.StatusCode.INVALID_ARGUMENT, "PARENT_ORDER_INVALID", end_time="must be after the start")
    assert why(refusal, "r1") == "refused (PARENT_ORDER_INVALID)\n  end_time: must be after the start"
    assert "--email" in why(rpc_error(grpc.StatusCode.PERMISSION_DENIED, "STEP_UP_REQUIRED"))


def test_a_lost_answer_says_how_to_learn_what_came_of_it() -> None:
    assert "--request-id r1" in why(rpc_error(grpc.StatusCode.UNAVAILABLE, ""), "r1")


def test_a_comparison_reads_difference_by_difference(capsys: pytest.CaptureFixture[str]) -> None:
    found = execution_pb2.Reconciliation(
        state=execution_pb2.RECONCILIATION_STATE_DONE,
        cause=execution_pb2.RECONCILIATION_CAUSE_REQUESTED,
        order_count=1,
        fill_count=2,
        asset_count=3,
        differences=[
            execution_pb2.Difference(
                kind=execution_pb2.DIFFERENCE_KIND_BALANCE,
                subject="USDT",
                ours="100",
                venues="",
                explanation="the venue counts",
            )
        ],
    )
    live.print_comparison(found)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].endswith("requested: 1 differ (1 orders, 2 fills, 3 assets)")
    assert printed[1:] == ["  balance USDT: ours 100, the venue's nothing", "    the venue counts"]
    failed = execution_pb2.Reconciliation(state=execution_pb2.RECONCILIATION_STATE_FAILED, problem="no answer")
    assert live.outcome_of(failed) == "not compared: no answer"


def test_an_order_made_by_hand_reads_as_what_it_is() -> None:
    order = execution_pb2.ExternalOrder(
        buys=True,
        quantity=decimal("0.5"),
        instrument_id="BINANCE:BTCUSDT",
        limit_price=decimal("29000"),
        state=execution_pb2.EXTERNAL_ORDER_STATE_FOUND,
    )
    assert live.external_text(order) == "buy 0.5 BINANCE:BTCUSDT at 29000, 0 filled, found"
