"""Nobody's rows are seen or touched by a transaction that does not name them, in any table of any service.

Everything is found in the catalogue, so a table that is added is covered without a line here, unless
- it has no `user_id`: then NOBODYS has to say why its rows are nobody's;
- it has a policy beside `of_its_users`: then POLICIES has to say what needs it;
- its row cannot be made up: then `tests.tenants.rows.MADE` has to help.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from uuid import UUID

import asyncpg
import pytest

from libs.ids import uuid7
from tests.mesh import Installation
from tests.tenants.rows import Person, Table, columns, fill, relations

OF_EVERY_SERVICE = {
    "alembic_version": "the revision of the schema",
    "leases": "which process does what",
    "fact_positions": "how far facts were read, by key",
    "fact_readers": "how far facts were read, by partition",
}
NOBODYS = {
    ("auth", "roles"): "the roles there are",
    ("auth", "signing_keys"): "auth's own, sealed",
    ("auth", "data_keys"): "auth's own, wrapped",
    ("auth", "default_entitlements"): "what everybody may without a plan",
    ("auth", "login_attempts"): "counted by a digest of address and e-mail, before anybody knows who it is",
    ("billing", "features"): "what there is to have",
    ("billing", "plans"): "what is offered to everybody",
    ("billing", "plan_features"): "what is offered to everybody",
    ("billing", "default_told"): "what everybody has without a plan",
    ("billing", "stripe_events"): "which of Stripe's events are done; an id and a kind say nothing of a person",
    ("orders", "instruments"): "what can be traded",
    ("orders", "global_switches"): "whether anybody may trade",
    ("orders", "equity_thinned"): "how far points were thinned out",
    ("orders", "live_trading"): "whether real money is traded",
    ("orders", "funding_settlements"): "what funding was settled at, and how far it is paid",
    ("execution", "instruments"): "what can be traded",
    ("execution", "paper_cursors"): "how far the paper market has read",
    ("execution", "live_trading"): "whether anybody may trade real money",
    ("execution", "global_switches"): "whether anybody may trade",
    ("feeds", "feed_subscriptions"): "what operators started, for everybody",
    ("feeds", "instrument_streams"): "how far ticks were sent",
    ("feeds", "backfills"): "what operators and feeds ordered, for everybody",
    ("marketdata", "instruments"): "what can be traded",
    ("marketdata", "instrument_words"): "the words of what can be traded",
    ("marketdata", "series"): "what is known of a market",
    ("marketdata", "coverage"): "what is known of a market",
    ("marketdata", "funding_rates"): "what funding was settled at",
    ("marketdata", "gaps"): "what is not known of a market",
    ("marketdata", "corporate_actions"): "what befell shares",
    ("marketdata", "deleted_spans"): "where prices are gone",
    ("marketdata", "dropped"): "how far back a market is kept",
    ("marketdata", "market_data_ohlcv"): "prices",
    ("marketdata", "market_data_ticks"): "prices",
}
"""Tables without a user, each with the reason why it needs none."""

POLICIES_OF_EVERY_SERVICE = {
    ("outbox", "relay"): "the relay publishes everybody's facts, and removes what is old",
    ("outbox", "relay_marks"): "the relay marks everybody's facts as published",
    ("request_keys", "worker_finds_old"): "answers are kept for thirty days",
    ("request_keys", "worker_purges_old"): "answers are kept for thirty days",
}
POLICIES = {
    ("marketdata", "imports", "worker_reads_all"): "files are worked on in the order they came, whoever sent them",
    ("marketdata", "import_chunks", "worker_reads_all"): "bytes that nobody needs any more are found and deleted",
    ("marketdata", "deletions", "worker_finds_old"): "that bars were deleted is known for thirty days",
    ("marketdata", "deletions", "worker_purges_old"): "that bars were deleted is known for thirty days",
    ("auth", "refresh_tokens", "worker_finds_old"): "spent tokens are removed a day after their end",
    ("auth", "refresh_tokens", "worker_purges_old"): "spent tokens are removed a day after their end",
    ("auth", "sessions", "worker_finds_old"): "sessions are removed two days after their end",
    ("auth", "sessions", "worker_purges_old"): "sessions are removed two days after their end",
    ("auth", "api_keys", "worker_finds_old"): "keys are removed ninety days after they were over",
    ("auth", "api_keys", "worker_purges_old"): "keys are removed ninety days after they were over",
    ("auth", "one_time_tokens", "worker_finds_old"): "tokens are removed a day after their end",
    ("auth", "one_time_tokens", "worker_purges_old"): "tokens are removed a day after their end",
    ("auth", "known_networks", "worker_finds_old"): "where somebody was is forgotten after ninety days",
    ("auth", "known_networks", "worker_purges_old"): "where somebody was is forgotten after ninety days",
    ("auth", "revocations", "worker_reads_all"): "every service is told whose tokens count no more",
    ("auth", "revocations", "worker_purges_old"): "they are forgotten when the last token has expired",
    ("auth", "failed_logins", "worker_reads_all"): "they are told together, whoever they are of",
    ("auth", "key_refusals", "worker_reads_all"): "they are told together, whoever they are of",
    ("auth", "mails", "worker_reads_all"): "whatever waits is sent",
    ("auth", "record_reads", "worker_finds_old"): "that records were read is known for a day, and recorded for ever",
    ("auth", "record_reads", "worker_purges_old"): "that records were read is known for a day, and recorded for ever",
    ("auth", "reset_requests", "worker_reads_all"): "whoever asked for a link is answered",
    ("auth", "reset_requests", "worker_purges_old"): "that somebody asked is forgotten after a day",
    ("billing", "customers", "worker_reads_all"): "a changed plan is told to all who have it, and the gone are purged",
    ("billing", "subscriptions", "worker_reads_all"): "what is due is done, whoever it is of",
    ("billing", "usage", "worker_finds_old"): "daily counts are kept for four hundred days",
    ("billing", "usage", "worker_purges_old"): "daily counts are kept for four hundred days",
    ("orders", "departures", "worker_reads_all"): "after whoever is gone the work is finished",
    ("orders", "accounts", "worker_reads_all"): "every account is valued, and locked where it lost too much",
    ("orders", "balances", "worker_reads_all"): "every account is valued",
    ("orders", "risk_limits", "worker_reads_all"): "every account is held to its limits on losses",
    ("orders", "equity_points", "worker_reads_all"): "everybody's points are thinned out",
    ("orders", "equity_points", "worker_thins"): "everybody's points are thinned out",
    ("orders", "kill_switches", "worker_reads_all"): "whoever's orders a switch cancels",
    ("orders", "exposures", "worker_reads_all"): "funding is paid to whoever may have held what it is of",
    ("orders", "positions", "worker_reads_all"): "every margin account is looked at, and paid funding",
    ("orders", "parent_orders", "worker_reads_all"): "whatever is due is placed, whoever's parent order it is of",
    ("orders", "trading_orders", "worker_finds_waiting"): "whoever's order waits here for a price, it is sent at that",
    ("users", "personal_data_exports", "worker_reads_all"): "whatever was asked for is put together, and expires",
    ("users", "personal_data_parts", "worker_reads_all"): "everybody's data keys are rewrapped",
    ("users", "user_broker_credentials", "worker_reads_all"): "everybody's data keys are rewrapped",
    ("users", "deletions", "worker_reads_all"): "whoever's time has come is deleted",
    ("execution", "venue_orders", "worker_reads_all"): "the market fills everybody's orders",
    ("execution", "venue_cancels", "worker_reads_all"): "everybody's cancels are sent",
    ("execution", "venue_replaces", "worker_reads_all"): "everybody's changes are sent",
    ("execution", "venue_releases", "worker_reads_all"): "everybody's held orders are released",
    ("execution", "live_accounts", "worker_reads_all"): "everybody's live accounts are carried",
    ("execution", "external_orders", "worker_reads_all"): "whatever is to be adopted is",
    ("execution", "reconciliations", "worker_reads_all"): "whatever is asked for is compared, and operators see all",
    ("execution", "differences", "worker_reads_all"): "operators see what was found",
}
"""What is granted to a service's role beside its users' rows, each with what needs it."""

COMMANDS = ("SELECT", "INSERT", "UPDATE", "DELETE")


@dataclass(frozen=True)
class Filled:
    """A database in which two people have a row in every table, and a third has none."""

    installation: Installation
    superuser: asyncpg.Connection
    tables: list[Table]
    """Those with a user."""
    anna: Person
    bert: Person
    nobody: UUID
    stack: AsyncExitStack
    connected: dict[str, asyncpg.Connection] = field(default_factory=dict)
    """By role: to connect takes longer than most of what is tried."""

    @property
    def words(self) -> list[str]:
        return sorted({word for word, _ in self.tables})

    @asynccontextmanager
    async def as_role(self, role: str, *users: UUID) -> AsyncIterator[asyncpg.Connection]:
        """A transaction of that role that names these users, and is rolled back."""
        if role not in self.connected:
            self.connected[role] = await self.stack.enter_async_context(self.installation.connect(role))
        rows = self.connected[role]
        transaction = rows.transaction()
        await transaction.start()
        await rows.execute("SELECT set_config('app.user_ids', $1, true)", ",".join(map(str, users)))
        yield rows
        await transaction.rollback()

    async def may(self, role: str, table: Table, command: str) -> bool:
        name = ".".join(table)
        # A right to some of the columns is enough to touch a row.
        asked = "has_table_privilege" if command == "DELETE" else "has_any_column_privilege"
        return await self.superuser.fetchval(f"SELECT {asked}($1::name, $2::text, $3)", role, name, command)

    async def sees_all(self, role: str, table: Table, command: str) -> bool:
        """Whether a policy, which POLICIES gives a reason for, lets the role do so to everybody's rows."""
        return await self.superuser.fetchval(
            """
            SELECT count(*) > 0 FROM pg_policies WHERE (schemaname, tablename) = ($1, $2) AND $3 = ANY (roles)
              AND policyname <> 'of_its_users' AND cmd IN ('ALL', $4) AND qual = 'true'
            """,
            *table,
            role,
            command,
        )


@pytest.fixture
async def filled(bare_installation: Installation) -> AsyncIterator[Filled]:
    async with AsyncExitStack() as stack:
        superuser = await stack.enter_async_context(bare_installation.connect())
        found = [(row["word"], row["name"]) for row in await relations(superuser)]
        tables = [table for table in found if "user_id" in await columns(superuser, table)]
        anna, bert = Person(uuid7()), Person(uuid7())
        for person in (anna, bert):
            for table in tables:
                try:
                    await fill(superuser, table, person)
                except (asyncpg.PostgresError, KeyError) as error:
                    pytest.fail(f"{'.'.join(table)} cannot be filled; MADE has to say with what: {error!r}")
        yield Filled(bare_installation, superuser, tables, anna, bert, uuid7(), stack)


def roles(word: str) -> tuple[str, str]:
    return f"{word}_rpc", f"{word}_worker"


async def test_every_table_is_behind_forced_row_security_or_nobodys_for_a_reason(bare_installation: Installation):
    seen: set[Table] = set()
    async with bare_installation.connect() as superuser:
        for row in await relations(superuser):
            table = row["word"], row["name"]
            seen.add(table)
            assert row["relkind"] in (b"r", b"p"), f"{table}: row security of a view is that of its owner"
            if "user_id" in await columns(superuser, table):
                assert row["is_secured"], f"{table} shows everybody's rows"
                assert table not in NOBODYS, table
            else:
                assert table in NOBODYS or row["name"] in OF_EVERY_SERVICE, f"{table} has no user_id, and no reason why"
    assert seen.issuperset(NOBODYS), "what is not there needs no reason"


async def test_what_a_role_may_beside_its_users_rows_has_a_reason(bare_installation: Installation):
    async with bare_installation.connect() as superuser:
        found = await superuser.fetch(
            "SELECT schemaname, tablename, policyname, roles FROM pg_policies WHERE policyname <> 'of_its_users'"
        )
    granted = set()
    for schema, table, policy, to in found:
        if {"public", *roles(schema)} & set(to):
            if (table, policy) not in POLICIES_OF_EVERY_SERVICE:
                assert (schema, table, policy) in POLICIES, f"{schema}.{table}: {policy}, and no reason why"
                granted.add((schema, table, policy))
            assert to == [f"{schema}_worker"], f"{schema}.{table}: {policy} is not the worker's alone"
    assert granted == set(POLICIES), "what is not there needs no reason"


async def test_no_role_gets_around_row_security(filled: Filled):
    for word in filled.words:
        for role in roles(word):
            found = await filled.superuser.fetchrow(
                """
                SELECT rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication AS is_mighty,
                  (SELECT count(*) FROM pg_auth_members WHERE member = pg_roles.oid) AS memberships,
                  (SELECT count(*) FROM pg_class WHERE relowner = pg_roles.oid)
                  + (SELECT count(*) FROM pg_proc WHERE proowner = pg_roles.oid)
                  + (SELECT count(*) FROM pg_namespace WHERE nspowner = pg_roles.oid) AS owned,
                  (SELECT array_agg(nspname::text) FROM pg_namespace
                   WHERE to_regrole(nspname || '_rpc') IS NOT NULL
                     AND has_schema_privilege(pg_roles.oid, pg_namespace.oid, 'USAGE')) AS homes,
                  (SELECT count(*) FROM pg_namespace
                   WHERE has_schema_privilege(pg_roles.oid, pg_namespace.oid, 'CREATE')) AS may_create
                FROM pg_roles WHERE rolname = $1
                """,
                role,
            )
            assert tuple(found) == (False, 0, 0, [word], 0), role


async def test_what_runs_as_the_owner_is_for_one_service_alone_and_cannot_be_misled(filled: Filled):
    """A function that looks past row security is called by its service only, and finds what it names in its schema."""
    found = await filled.superuser.fetch(
        """
        SELECT nspname, proname, proconfig, array_agg(coalesce(grantee::regrole::text, 'everybody')) AS callers
        FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace,
          aclexplode(coalesce(proacl, acldefault('f', proowner)))
        WHERE prosecdef AND to_regrole(nspname || '_rpc') IS NOT NULL GROUP BY 1, 2, 3
        """
    )
    assert found
    for word, name, settings, callers in found:
        assert set(callers) <= {"tradeloom", *roles(word)}, name
        assert settings == [f"search_path={word}, pg_temp"], name


async def test_without_users_nothing_is_seen_and_with_users_only_theirs(filled: Filled):
    anna, bert, nobody = filled.anna.user_id, filled.bert.user_id, filled.nobody
    for table in filled.tables:
        for role in roles(table[0]):
            if not await filled.may(role, table, "SELECT"):
                continue
            everything = await filled.sees_all(role, table, "SELECT")
            for users in ((), (nobody,), (bert,), (anna, bert)):
                async with filled.as_role(role, *users) as rows:
                    found = await rows.fetch(f"SELECT user_id FROM {'.'.join(table)}")
                seen = {row["user_id"] for row in found} & {anna, bert}
                wanted = {anna, bert} if everything else {anna, bert} & set(users)
                assert seen == wanted, (table, role, users)


async def test_without_users_and_for_others_nothing_is_changed(filled: Filled):
    anna, nobody = filled.anna.user_id, filled.nobody
    tried = 0
    for table in filled.tables:
        name = ".".join(table)
        for role in roles(table[0]):
            for users in ((), (nobody,)):
                if await filled.may(role, table, "UPDATE") and not await filled.sees_all(role, table, "UPDATE"):
                    for column in await changeable(filled, role, table):
                        async with filled.as_role(role, *users) as rows:
                            # A default needs no right to read; what no row is touched by breaks no rule.
                            assert await rows.execute(f"UPDATE {name} SET {column} = DEFAULT") == "UPDATE 0", (
                                table,
                                role,
                            )
                        tried += 1
                if await filled.may(role, table, "DELETE") and not await filled.sees_all(role, table, "DELETE"):
                    async with filled.as_role(role, *users) as rows:
                        assert await rows.execute(f"DELETE FROM {name}") == "DELETE 0", (table, role)
                    tried += 1
                if await filled.may(role, table, "INSERT"):
                    values = filled.anna.filled[table]
                    kinds = await columns(filled.superuser, table)
                    given = [f"${number}::text::{kinds[one]['type']}" for number, one in enumerate(values, 1)]
                    async with filled.as_role(role, *users) as rows:
                        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
                            await rows.execute(
                                f"INSERT INTO {name} ({', '.join(values)}) VALUES ({', '.join(given)})",
                                *values.values(),
                            )
                    tried += 1
    assert tried > 4 * len(filled.tables)
    for table in filled.tables:
        kept = await filled.superuser.fetchval(f"SELECT count(*) FROM {'.'.join(table)} WHERE user_id = $1", anna)
        assert kept == 1, table


async def test_ones_own_row_is_given_to_nobody_else(filled: Filled):
    anna, bert = filled.anna.user_id, filled.bert.user_id
    tried = 0
    for table in filled.tables:
        for role in roles(table[0]):
            if "user_id" in await changeable(filled, role, table) and not await filled.sees_all(role, table, "UPDATE"):
                async with filled.as_role(role, bert) as rows:
                    with pytest.raises(asyncpg.InsufficientPrivilegeError, match="row-level security"):
                        await rows.execute(f"UPDATE {'.'.join(table)} SET user_id = $1", anna)
                tried += 1
    assert tried > len(filled.words)


async def changeable(filled: Filled, role: str, table: Table) -> list[str]:
    """The columns that the role may update."""
    name, found = ".".join(table), await columns(filled.superuser, table)
    asked = "SELECT has_column_privilege($1::name, $2::text, $3::text, 'UPDATE')"
    return [column for column in found if await filled.superuser.fetchval(asked, role, name, column)]
