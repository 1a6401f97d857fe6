"""What every service's schema has alike: its roles, the tables of libs.store and libs.bus, and row security.

Each function returns statements; a migration runs them: `run(*shared.store_tables("orders"), "CREATE TABLE …", *own(…))`.
Names need no schema: each role's search_path, and a migration's, is its service's schema.
"""

from alembic import op

# The users of the transaction, as libs.store.database sets them; none are set, none match. As a sub-select it is
# evaluated once per statement, and an index on user_id is used. The inner cast is part of that; the outer one only
# says that this is an array and not a set of rows. With the outer cast alone every row would parse the ids anew.
OF_ITS_USERS = "user_id = ANY ((SELECT string_to_array(current_setting('app.user_ids', true), ',')::uuid[])::uuid[])"

KEPT_REQUEST_DAYS = 30


def run(*statements: str) -> None:
    """Run statements in a migration, one after the other."""
    for statement in statements:
        op.execute(statement)


def home(word: str) -> list[str]:
    """The schema and its two roles, where they are missing. They cannot log in until an operator lets them."""
    statements = [f"CREATE SCHEMA IF NOT EXISTS {word}"]
    for role in (f"{word}_rpc", f"{word}_worker"):
        statements += [
            f"""
            DO $$ BEGIN
              CREATE ROLE {role} NOLOGIN;
            EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL;
            END $$
            """,
            # Other databases of the server may be migrated at this moment; only one writes the role, once.
            f"""
            DO $$ BEGIN
              IF NOT EXISTS (SELECT FROM pg_db_role_setting JOIN pg_roles ON pg_roles.oid = setrole
                             WHERE rolname = '{role}' AND setdatabase = 0) THEN
                ALTER ROLE {role} SET search_path = {word};
              END IF;
            EXCEPTION WHEN internal_error THEN NULL;
            END $$
            """,
            f"GRANT USAGE ON SCHEMA {word} TO {role}",
        ]
    return statements


def visible_revision(word: str) -> list[str]:
    """Let the service see at which revision its schema is."""
    return [f"GRANT SELECT ON {word}.alembic_version TO {word}_rpc, {word}_worker"]


def grant(word: str, table: str, *, rpc: str = "", worker: str = "") -> list[str]:
    """What each role may do with a table, such as rpc="SELECT, INSERT"; nothing where nothing is said."""
    return [
        f"GRANT {rights} ON {table} TO {word}_{role}" for role, rights in (("rpc", rpc), ("worker", worker)) if rights
    ]


def own(word: str, table: str, *, worker_reads_all: bool = False) -> list[str]:
    """Row security, forced, for a table with user_id: either role sees and writes only rows of its transaction's users.

    With worker_reads_all the worker also reads everybody's rows, to find what is to be done.
    """
    statements = [
        f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
        f"ALTER TABLE {table} FORCE ROW LEVEL SECURITY",
        f"""
        CREATE POLICY of_its_users ON {table} TO {word}_rpc, {word}_worker
        USING ({OF_ITS_USERS}) WITH CHECK ({OF_ITS_USERS})
        """,
    ]
    if worker_reads_all:
        statements.append(f"CREATE POLICY worker_reads_all ON {table} FOR SELECT TO {word}_worker USING (true)")
    return statements


def store_tables(word: str) -> list[str]:
    """request_keys, outbox, leases, fact_positions and fact_readers, with their rights."""
    old = f"create_time < now() - interval '{KEPT_REQUEST_DAYS} days'"
    return [
        """
        CREATE TABLE request_keys (
          user_id uuid NOT NULL, method text NOT NULL, request_id text NOT NULL,
          digest bytea NOT NULL, answer bytea, create_time timestamptz NOT NULL DEFAULT now(),
          PRIMARY KEY (user_id, method, request_id))
        """,
        # Small, and no hindrance to updating a row in its page when the answer is recorded.
        "CREATE INDEX request_keys_create_time ON request_keys USING brin (create_time)",
        *own(word, "request_keys"),
        f"CREATE POLICY worker_finds_old ON request_keys FOR SELECT TO {word}_worker USING ({old})",
        f"CREATE POLICY worker_purges_old ON request_keys FOR DELETE TO {word}_worker USING ({old})",
        *grant(word, "request_keys", rpc="SELECT, INSERT, UPDATE", worker="SELECT, INSERT, UPDATE, DELETE"),
        """
        CREATE TABLE outbox (
          outbox_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, partition smallint NOT NULL,
          key text NOT NULL, sequence bigint NOT NULL CHECK (sequence > 0), user_id uuid, kind text NOT NULL,
          payload bytea NOT NULL, create_time timestamptz NOT NULL DEFAULT now(),
          stream_epoch bigint, stream_counter bigint, UNIQUE (key, sequence))
        """,
        "CREATE INDEX outbox_new ON outbox (outbox_id) WHERE stream_epoch IS NULL AND stream_counter IS NULL",
        "CREATE INDEX outbox_again ON outbox (outbox_id) WHERE stream_epoch IS NULL AND stream_counter IS NOT NULL",
        "CREATE INDEX outbox_published ON outbox (partition, stream_epoch, stream_counter) WHERE stream_epoch IS NOT NULL",
        "ALTER TABLE outbox ENABLE ROW LEVEL SECURITY",
        "ALTER TABLE outbox FORCE ROW LEVEL SECURITY",
        f"CREATE POLICY of_its_users ON outbox FOR INSERT TO {word}_rpc WITH CHECK (user_id IS NULL OR {OF_ITS_USERS})",
        f"CREATE POLICY relay ON outbox TO {word}_worker USING (true) WITH CHECK (user_id IS NULL OR {OF_ITS_USERS})",
        f"CREATE POLICY relay_marks ON outbox FOR UPDATE TO {word}_worker USING (true) WITH CHECK (true)",
        *grant(word, "outbox", rpc="INSERT", worker="SELECT, INSERT, UPDATE, DELETE"),
        """
        CREATE TABLE leases (
          name text PRIMARY KEY, owner text NOT NULL, epoch bigint NOT NULL, expire_time timestamptz NOT NULL)
        """,
        *grant(word, "leases", worker="SELECT, INSERT, UPDATE, DELETE"),
        """
        CREATE TABLE fact_positions (
          source text NOT NULL, key text NOT NULL, sequence bigint NOT NULL, ahead bigint NOT NULL,
          PRIMARY KEY (source, key))
        """,
        "CREATE INDEX fact_positions_missing ON fact_positions (source) WHERE ahead > sequence",
        *grant(word, "fact_positions", worker="SELECT, INSERT, UPDATE, DELETE"),
        """
        CREATE TABLE fact_readers (
          source text NOT NULL, partition smallint NOT NULL, stream_id text NOT NULL, PRIMARY KEY (source, partition))
        """,
        *grant(word, "fact_readers", worker="SELECT, INSERT, UPDATE, DELETE"),
    ]


def drop_store_tables() -> list[str]:
    """The way back from store_tables()."""
    return [f"DROP TABLE {table}" for table in ("fact_readers", "fact_positions", "leases", "outbox", "request_keys")]
