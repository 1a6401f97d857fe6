"""The named steps of an order's way, and how a process is held at one of them.

Nothing in the services knows of it. A trigger on the row that is written at the step takes an advisory lock, shared: it
is free unless the proof holds it, and then the process waits in the very statement. There are two places:

BEFORE  In the statement that writes the row. Whoever is killed there has written nothing: the transaction rolls back.
COMMIT  In its COMMIT, by a deferred trigger. Whoever is killed there has committed and will never know: Postgres carries the
        COMMIT out once the lock is free, with nobody left to hear of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

LOCKS = 0x70726F66
"""The class of the advisory locks; the number in it is the step's."""

BEFORE, COMMIT = "before", "commit"


@dataclass(frozen=True)
class Step:
    """A place on the way; event and condition say which writing of the table's row it is."""

    name: str
    word: str
    place: str
    table: str
    event: str = "INSERT"
    condition: str = "true"


ACCEPTED = "NEW.state = 'pending_new'"
CHANGE_ASKED = "OLD.state <> 'pending_replace' AND NEW.state = 'pending_replace'"
CHANGE_SENT = "OLD.send_time IS NULL AND NEW.send_time IS NOT NULL"
SENT = "OLD.state = 'intended' AND NEW.state <> 'intended'"
OUTCOME = "OLD.state = 'sending' AND NEW.state NOT IN ('sending', 'intended')"
PUBLISHED = "OLD.stream_epoch IS NULL AND NEW.stream_epoch IS NOT NULL"

OF_ORDERS: Sequence[Step] = (
    Step("before the order's commit", "orders", BEFORE, "trading_orders", condition=ACCEPTED),
    # Its caller has no answer, and the order is there.
    Step("after the order's commit, before the answer", "orders", COMMIT, "trading_orders", condition=ACCEPTED),
    Step("before a change is taken up", "orders", BEFORE, "trading_orders", "UPDATE", CHANGE_ASKED),
    Step("after a change is taken up, before the answer", "orders", COMMIT, "trading_orders", "UPDATE", CHANGE_ASKED),
    # Redis has the fact and orders does not know: it goes out twice.
    Step("orders: after a fact was sent, before it is marked", "orders", BEFORE, "outbox", "UPDATE", PUBLISHED),
    Step("before a fill is booked", "orders", BEFORE, "trading_executions"),
    Step("after a fill is booked", "orders", COMMIT, "trading_executions"),
)
OF_EXECUTION: Sequence[Step] = (
    Step("before the intent", "execution", BEFORE, "venue_orders"),
    Step("after the intent", "execution", COMMIT, "venue_orders"),
    Step("before the fill", "execution", BEFORE, "venue_fills"),
    Step("after the fill", "execution", COMMIT, "venue_fills"),
    Step("before a cancel is answered", "execution", BEFORE, "venue_cancels", "DELETE"),
    # On paper it is made in the same transaction.
    Step("before a change is answered", "execution", BEFORE, "venue_replaces", "DELETE"),
    Step("after a change is answered", "execution", COMMIT, "venue_replaces", "DELETE"),
    Step("execution: after a fact was sent, before it is marked", "execution", BEFORE, "outbox", "UPDATE", PUBLISHED),
)
STEPS: Sequence[Step] = (
    *OF_ORDERS,
    *OF_EXECUTION,
    # The paper venue is this very transaction: to send is to commit that the venue has the order.
    Step("before the send", "execution", BEFORE, "venue_orders", "UPDATE", SENT),
    Step("after the send, before the reply", "execution", COMMIT, "venue_orders", "UPDATE", SENT),
)
LIVE_STEPS: Sequence[Step] = (
    *OF_ORDERS,
    *OF_EXECUTION,
    Step("before an order is marked as sent", "execution", BEFORE, "venue_orders", "UPDATE", SENT),
    # Not a byte of it has left, and whoever takes over cannot know that.
    Step("after an order is marked as sent, before it is", "execution", COMMIT, "venue_orders", "UPDATE", SENT),
    Step("before a change is marked as sent", "execution", BEFORE, "venue_replaces", "UPDATE", CHANGE_SENT),
    Step(
        "after a change is marked as sent, before it is", "execution", COMMIT, "venue_replaces", "UPDATE", CHANGE_SENT
    ),
    Step("before an outcome", "execution", BEFORE, "venue_orders", "UPDATE", OUTCOME),
    Step("after an outcome", "execution", COMMIT, "venue_orders", "UPDATE", OUTCOME),
    Step("after a cancel is answered", "execution", COMMIT, "venue_cancels", "DELETE"),
)
ALL = tuple(dict.fromkeys((*STEPS, *LIVE_STEPS)))

# Whoever waits here waits as long as the proof likes, whatever the session's own patience is.
HOLD = f"""
    CREATE FUNCTION proof.hold() RETURNS trigger LANGUAGE plpgsql SET lock_timeout = 0 AS $$
    BEGIN
      PERFORM pg_advisory_xact_lock_shared({LOCKS}, TG_ARGV[0]::integer);
      RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
    END $$
    """
WAITING = """
    SELECT client_port FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE locktype = 'advisory' AND classid = $1 AND objid = $2 AND mode = 'ShareLock' AND NOT granted
    """


async def prepare(superuser: asyncpg.Connection, of: Sequence[Step]) -> None:
    """Makes the triggers of these steps in this database."""
    await superuser.execute("CREATE SCHEMA proof")
    await superuser.execute(HOLD)
    for step in of:
        number = ALL.index(step)
        kind, deferred = "TRIGGER", ""
        when = f"BEFORE {step.event}"
        if step.place == COMMIT:
            kind, when, deferred = "CONSTRAINT TRIGGER", f"AFTER {step.event}", "DEFERRABLE INITIALLY DEFERRED"
        await superuser.execute(
            f"""
            CREATE {kind} proof_{number} {when} ON {step.word}.{step.table} {deferred}
            FOR EACH ROW WHEN ({step.condition}) EXECUTE FUNCTION proof.hold('{number}')
            """
        )


async def take(superuser: asyncpg.Connection, step: Step) -> None:
    """From here on until the connection is closed whoever comes to the step is held there."""
    await superuser.execute("SELECT pg_advisory_lock($1, $2)", LOCKS, ALL.index(step))


async def waiting_ports(superuser: asyncpg.Connection, step: Step) -> list[int]:
    """The ports of the connections, on their clients' side, that are held at the step."""
    return [row["client_port"] for row in await superuser.fetch(WAITING, LOCKS, ALL.index(step))]
