"""What is promised of real money beyond what is promised of paper."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tradeloom.execution.v1 import execution_pb2

from tests.faults.proof.verify import PROMISES, Evidence, Finding, Promise

EXPLAINED = ("order_state", "fill_missed")
"""Differences that faults make, and that are made good. Whatever else a comparison finds, nobody here has done."""


@dataclass(frozen=True)
class LiveEvidence(Evidence):
    reconciled: Mapping[str, execution_pb2.Reconciliation]
    """What a comparison of each account has found at the very end."""


async def comparisons_find_nothing(evidence: Evidence) -> Finding:
    """At the end our books and the exchange's are the same, by our own comparison too."""
    finding = Finding()
    reconciled = evidence.reconciled if isinstance(evidence, LiveEvidence) else {}
    for account_id in evidence.journal.opened:
        found = reconciled.get(account_id)
        finding.expect(found is not None and not found.problem, f"{account_id} was not compared: {found}")
        differences = list(found.differences) if found else []
        finding.expect(not differences, f"{account_id} differs: {differences[:1]}")
    return finding


async def nothing_happened_unexplained(evidence: Evidence) -> Finding:
    """Nobody brought or took anything, nor traded past us: so no books were ever adjusted, and no stranger's order seen."""
    finding = Finding()
    for row in await evidence.rows.fetch("SELECT account_id, adjustments FROM orders.accounts"):
        # The first is what the exchange held when the account was opened.
        finding.expect(row["adjustments"] == 1, f"{row['account_id']} was adjusted {row['adjustments']} times")
    for row in await evidence.rows.fetch(
        "SELECT kind, subject, ours, venues, venue_order_id FROM execution.differences WHERE kind <> ALL($1)", EXPLAINED
    ):
        finding.expect(False, f"a comparison once found {tuple(row)}")
    for table in ("external_fills", "external_orders"):
        count = await evidence.rows.fetchval(f"SELECT count(*) FROM execution.{table}")
        finding.expect(not count, f"{count} {table}")
    return finding


async def executions_books_are_the_venues(evidence: Evidence) -> Finding:
    """What execution expects the exchange to hold is what orders has booked, to the last digit."""
    finding = Finding()
    rows = evidence.rows
    booked = await rows.fetch("SELECT account_id, asset, total FROM orders.balances WHERE total <> 0")
    counted = await rows.fetch("SELECT account_id, asset, total FROM execution.venue_balances WHERE total <> 0")
    kept, expected = ({tuple(row)[:2]: row["total"] for row in found} for found in (booked, counted))
    for key in expected.keys() | kept.keys():
        finding.expect(expected.get(key) == kept.get(key), f"{key} is {kept.get(key)}, expected {expected.get(key)}")
    return finding


LIVE_PROMISES: Sequence[Promise] = (
    *PROMISES,
    comparisons_find_nothing,
    nothing_happened_unexplained,
    executions_books_are_the_venues,
)
