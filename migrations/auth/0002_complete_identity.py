"""Complete auth: second factors, links by mail, API keys, entitlements, revocations of all kinds, and the audit chains."""

from migrations.shared import grant, own, run

revision = "0002"
down_revision = "0001"

OLD_NETWORK = "last_time < now() - interval '90 days'"
OLD_REVOCATION = "expire_time < now() - interval '1 day'"
OLD_TOKEN = "expire_time < now() - interval '1 day'"  # noqa: S105 (a condition)


def upgrade() -> None:
    run(
        # not_before: access tokens from before it are outdated.
        """
        ALTER TABLE users
          ADD COLUMN not_before timestamptz,
          DROP CONSTRAINT users_state_check,
          ADD CONSTRAINT users_state_check CHECK (state IN ('active', 'suspended', 'purged'))
        """,
        "CREATE INDEX users_create_time ON users (create_time, user_id)",
        "GRANT DELETE ON user_roles TO auth_rpc",
        # What has ended and may still be presented, whatever it is: sessions, API keys, and a person's tokens from
        # before a time. mark: by which a reader knows what was committed since it last looked, whatever clocks say.
        """
        CREATE TABLE revocations (
          subject uuid NOT NULL, user_id uuid NOT NULL REFERENCES users,
          not_before timestamptz, expire_time timestamptz NOT NULL, mark xid8 NOT NULL DEFAULT pg_current_xact_id(),
          PRIMARY KEY (user_id, subject))
        """,
        "CREATE INDEX revocations_mark ON revocations (mark)",
        "CREATE INDEX revocations_expire_time ON revocations (expire_time)",
        *own("auth", "revocations", worker_reads_all=True),
        f"CREATE POLICY worker_purges_old ON revocations FOR DELETE TO auth_worker USING ({OLD_REVOCATION})",
        *grant("auth", "revocations", rpc="SELECT, INSERT, UPDATE", worker="SELECT, INSERT, UPDATE, DELETE"),
        """
        INSERT INTO revocations (subject, user_id, expire_time)
        SELECT session_id, user_id, access_expire_time FROM sessions WHERE access_expire_time > now()
        """,
        # second_factor_time: when a code was last proved in this session.
        """
        ALTER TABLE sessions
          DROP COLUMN access_expire_time,
          ADD COLUMN user_agent text NOT NULL DEFAULT '',
          ADD COLUMN refresh_time timestamptz NOT NULL DEFAULT now(),
          ADD COLUMN expire_time timestamptz NOT NULL DEFAULT now() + interval '30 days',
          ADD COLUMN second_factor_time timestamptz
        """,
        "DROP POLICY worker_reads_all ON sessions",
        "DROP INDEX sessions_user_id",
        "CREATE INDEX sessions_user_id ON sessions (user_id, session_id)",
        "GRANT DELETE ON sessions TO auth_worker",
        # From where a person has signed in before: the failures of others do not keep them out there.
        """
        CREATE TABLE known_networks (
          user_id uuid NOT NULL REFERENCES users, network text NOT NULL, last_time timestamptz NOT NULL DEFAULT now(),
          PRIMARY KEY (user_id, network))
        """,
        "CREATE INDEX known_networks_last_time ON known_networks (last_time)",
        *own("auth", "known_networks"),
        f"CREATE POLICY worker_finds_old ON known_networks FOR SELECT TO auth_worker USING ({OLD_NETWORK})",
        f"CREATE POLICY worker_purges_old ON known_networks FOR DELETE TO auth_worker USING ({OLD_NETWORK})",
        *grant("auth", "known_networks", rpc="SELECT, INSERT, UPDATE", worker="SELECT, DELETE"),
        # enable_time: empty until a first code has proved the secret. last_step: a code works once.
        """
        CREATE TABLE mfa_totp (
          user_id uuid PRIMARY KEY REFERENCES users, sealed_secret bytea NOT NULL, enable_time timestamptz,
          last_step bigint NOT NULL DEFAULT 0)
        """,
        *own("auth", "mfa_totp"),
        *grant("auth", "mfa_totp", rpc="SELECT, INSERT, UPDATE, DELETE", worker="SELECT, DELETE"),
        """
        CREATE TABLE recovery_codes (
          user_id uuid NOT NULL REFERENCES users, code_hash bytea NOT NULL, PRIMARY KEY (user_id, code_hash))
        """,
        *own("auth", "recovery_codes"),
        *grant("auth", "recovery_codes", rpc="SELECT, INSERT, DELETE", worker="SELECT, DELETE"),
        # What works once: the challenge of a login in two steps, and the links that are sent by mail.
        """
        CREATE TABLE one_time_tokens (
          token_hash bytea PRIMARY KEY, user_id uuid NOT NULL REFERENCES users,
          purpose text NOT NULL CHECK (purpose IN ('challenge', 'verify_email', 'reset_password')),
          attempt_count smallint NOT NULL DEFAULT 0, expire_time timestamptz NOT NULL, spent_time timestamptz)
        """,
        "CREATE INDEX one_time_tokens_user_id ON one_time_tokens (user_id, purpose)",
        "CREATE INDEX one_time_tokens_expire_time ON one_time_tokens (expire_time)",
        *own("auth", "one_time_tokens"),
        f"CREATE POLICY worker_finds_old ON one_time_tokens FOR SELECT TO auth_worker USING ({OLD_TOKEN})",
        f"CREATE POLICY worker_purges_old ON one_time_tokens FOR DELETE TO auth_worker USING ({OLD_TOKEN})",
        *grant("auth", "one_time_tokens", rpc="SELECT, INSERT, UPDATE, DELETE", worker="SELECT, INSERT, DELETE"),
        # Mails on their way. The address and the link are sealed; a row goes when its mail has gone.
        """
        CREATE TABLE mails (
          mail_id uuid PRIMARY KEY, user_id uuid NOT NULL REFERENCES users, kind text NOT NULL, sealed bytea NOT NULL,
          try_count integer NOT NULL DEFAULT 0, try_time timestamptz NOT NULL DEFAULT now(),
          create_time timestamptz NOT NULL DEFAULT now())
        """,
        "CREATE INDEX mails_try_time ON mails (try_time)",
        "CREATE INDEX mails_user_id ON mails (user_id)",
        *own("auth", "mails", worker_reads_all=True),
        *grant("auth", "mails", rpc="INSERT", worker="SELECT, INSERT, UPDATE, DELETE"),
        # Asked for, whether or not anybody has the address: only the worker finds out, so asking tells nothing.
        """
        CREATE TABLE reset_requests (
          email text PRIMARY KEY, create_time timestamptz NOT NULL DEFAULT now(), done boolean NOT NULL DEFAULT false)
        """,
        "CREATE INDEX reset_requests_new ON reset_requests (create_time) WHERE NOT done",
        "CREATE INDEX reset_requests_create_time ON reset_requests (create_time)",
        *grant("auth", "reset_requests", rpc="SELECT, INSERT, UPDATE", worker="SELECT, UPDATE, DELETE"),
        """
        CREATE TABLE api_keys (
          api_key_id uuid PRIMARY KEY, user_id uuid NOT NULL REFERENCES users, name text NOT NULL, prefix text NOT NULL,
          secret_hash bytea NOT NULL UNIQUE, scope text NOT NULL CHECK (scope IN ('read', 'trade')),
          account_ids uuid[] NOT NULL, allowed_networks text[] NOT NULL, create_time timestamptz NOT NULL,
          expire_time timestamptz, last_used_time timestamptz, last_used_address text NOT NULL DEFAULT '',
          revoke_time timestamptz)
        """,
        "CREATE INDEX api_keys_user_id ON api_keys (user_id, api_key_id)",
        *own("auth", "api_keys"),
        *grant("auth", "api_keys", rpc="SELECT, INSERT, UPDATE, DELETE", worker="SELECT, DELETE"),
        # What billing tells: of a person, and of everybody of whom it tells nothing.
        """
        CREATE TABLE entitlements (
          user_id uuid PRIMARY KEY, plan text NOT NULL, capabilities text[] NOT NULL, quotas jsonb NOT NULL)
        """,
        *own("auth", "entitlements"),
        *grant("auth", "entitlements", rpc="SELECT", worker="SELECT, INSERT, UPDATE, DELETE"),
        """
        CREATE TABLE default_entitlements (
          only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
          plan text NOT NULL, capabilities text[] NOT NULL, quotas jsonb NOT NULL)
        """,
        *grant("auth", "default_entitlements", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
        # Where each person's chain of audit events ends, and the chains. Rows are added and never changed, but that
        # what is personal in them can be emptied: their hashes stay, and so does the chain.
        "CREATE TABLE audit_chains (user_id uuid PRIMARY KEY, sequence bigint NOT NULL, hash bytea NOT NULL)",
        *own("auth", "audit_chains"),
        *grant("auth", "audit_chains", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
        """
        CREATE TABLE audit_events (
          user_id uuid NOT NULL, sequence bigint NOT NULL, time timestamptz NOT NULL, source text NOT NULL,
          kind text NOT NULL, detail text NOT NULL, salt bytea NOT NULL, digest bytea NOT NULL, hash bytea NOT NULL,
          PRIMARY KEY (user_id, sequence))
        """,
        *own("auth", "audit_events"),
        *grant("auth", "audit_events", rpc="SELECT", worker="SELECT, INSERT, UPDATE (detail, salt)"),
        """
        CREATE FUNCTION only_empties() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
          IF NEW.detail <> '' OR NEW.salt <> ''::bytea THEN
            RAISE EXCEPTION 'audit events can be emptied and nothing else';
          END IF;
          RETURN NEW;
        END $$
        """,
        """
        CREATE TRIGGER only_empties BEFORE UPDATE ON audit_events FOR EACH ROW EXECUTE FUNCTION only_empties()
        """,
        """
        ALTER TABLE signing_keys ADD COLUMN purpose text NOT NULL DEFAULT 'access' CHECK (purpose IN ('access', 'audit'))
        """,
        # What a purge leaves of a person: the id, and that there was one.
        "GRANT UPDATE (email, full_name, password_hash, state, email_verified, not_before) ON users TO auth_worker",
        "GRANT SELECT (state, email, full_name, not_before) ON users TO auth_worker",
        "GRANT SELECT, DELETE ON user_roles TO auth_worker",
        "CREATE POLICY look_up ON known_networks FOR SELECT TO CURRENT_USER USING (true)",
        "CREATE POLICY look_up ON one_time_tokens FOR SELECT TO CURRENT_USER USING (true)",
        "CREATE POLICY look_up ON api_keys FOR SELECT TO CURRENT_USER USING (true)",
        "CREATE POLICY look_up ON user_roles FOR SELECT TO CURRENT_USER USING (true)",
        "CREATE POLICY look_up ON mfa_totp FOR SELECT TO CURRENT_USER USING (true)",
        "DROP FUNCTION login_of",
        *look_up(
            "login_of(asked text, from_network text)",
            "TABLE (user_id uuid, password_hash text, is_known boolean)",
            """
            SELECT users.user_id, users.password_hash, EXISTS (
              SELECT FROM known_networks WHERE known_networks.user_id = users.user_id AND network = from_network)
            FROM users WHERE email = asked AND state = 'active'
            """,
        ),
        *look_up(
            "owner_of_one_time_token(asked bytea, asked_purpose text)",
            "uuid",
            "SELECT user_id FROM one_time_tokens WHERE token_hash = asked AND purpose = asked_purpose",
        ),
        *look_up("owner_of_api_key(asked bytea)", "uuid", "SELECT user_id FROM api_keys WHERE secret_hash = asked"),
        *look_up(
            "user_of_email(asked text)",
            "uuid",
            "SELECT user_id FROM users WHERE email = asked AND state = 'active'",
            role="auth_worker",
        ),
        # For administrators, whom the contract lets ask: everybody, one page at a time.
        *look_up(
            """
            list_users(after_time timestamptz, after_id uuid, asked text, asked_role text, asked_states text[], most integer)
            """,
            """
            TABLE (user_id uuid, email text, full_name text, roles text[], email_verified boolean, create_time timestamptz,
                   totp_enabled boolean, state text)
            """,
            """
            SELECT users.user_id, users.email, users.full_name,
                   ARRAY(SELECT role FROM user_roles WHERE user_roles.user_id = users.user_id),
                   users.email_verified, users.create_time,
                   EXISTS (SELECT FROM mfa_totp WHERE mfa_totp.user_id = users.user_id AND enable_time IS NOT NULL),
                   users.state
            FROM users
            WHERE (after_id IS NULL OR (users.create_time, users.user_id) > (after_time, after_id))
              AND (asked = '' OR position(lower(asked) IN lower(users.email || ' ' || users.full_name)) > 0)
              AND (asked_role = '' OR EXISTS (
                SELECT FROM user_roles WHERE user_roles.user_id = users.user_id AND role = asked_role))
              AND (cardinality(asked_states) = 0 OR users.state = ANY (asked_states))
            ORDER BY users.create_time, users.user_id LIMIT most
            """,
        ),
        # Whether anybody else could still administer.
        *look_up(
            "others_who_administer(without uuid)",
            "bigint",
            """
            SELECT count(*) FROM users JOIN user_roles USING (user_id)
            WHERE role = 'admin' AND state = 'active' AND users.user_id <> without
            """,
        ),
    )


def look_up(signature: str, returns: str, query: str, *, role: str = "auth_rpc") -> list[str]:
    """A function that sees everybody's rows, for what is asked before, or without, being somebody; of one role alone."""
    name = signature.strip().split("(")[0]
    return [
        f"""
        CREATE FUNCTION {signature} RETURNS {returns}
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = auth, pg_temp AS $$ {query} $$
        """,
        f"REVOKE ALL ON FUNCTION {name} FROM PUBLIC",
        f"GRANT EXECUTE ON FUNCTION {name} TO {role}",
    ]


def downgrade() -> None:
    run(
        "DROP FUNCTION others_who_administer, list_users, user_of_email, owner_of_api_key, owner_of_one_time_token, login_of",
        "DROP POLICY look_up ON user_roles",
        "REVOKE SELECT, DELETE ON user_roles FROM auth_worker",
        "REVOKE SELECT (state, email, full_name, not_before) ON users FROM auth_worker",
        "REVOKE UPDATE (email, full_name, password_hash, state, email_verified, not_before) ON users FROM auth_worker",
        "DELETE FROM signing_keys WHERE purpose <> 'access'",
        "ALTER TABLE signing_keys DROP COLUMN purpose",
        "DROP TABLE audit_events, audit_chains, default_entitlements, entitlements, api_keys, reset_requests, mails",
        "DROP TABLE one_time_tokens, recovery_codes, mfa_totp, known_networks",
        "DROP FUNCTION only_empties",
        """
        ALTER TABLE sessions
          DROP COLUMN user_agent, DROP COLUMN refresh_time, DROP COLUMN expire_time, DROP COLUMN second_factor_time,
          ADD COLUMN access_expire_time timestamptz
        """,
        "CREATE INDEX sessions_access_expire_time ON sessions (access_expire_time) WHERE access_expire_time IS NOT NULL",
        "DROP INDEX sessions_user_id",
        "CREATE INDEX sessions_user_id ON sessions (user_id)",
        "CREATE POLICY worker_reads_all ON sessions FOR SELECT TO auth_worker USING (true)",
        "REVOKE DELETE ON sessions FROM auth_worker",
        "UPDATE sessions SET access_expire_time = revocations.expire_time FROM revocations WHERE session_id = subject",
        "DROP TABLE revocations",
        "REVOKE DELETE ON user_roles FROM auth_rpc",
        "DROP INDEX users_create_time",
        "UPDATE users SET state = 'suspended' WHERE state = 'purged'",
        """
        ALTER TABLE users
          DROP COLUMN not_before,
          DROP CONSTRAINT users_state_check,
          ADD CONSTRAINT users_state_check CHECK (state IN ('active', 'suspended'))
        """,
        """
        CREATE FUNCTION login_of(asked text) RETURNS TABLE (user_id uuid, password_hash text)
        LANGUAGE sql STABLE SECURITY DEFINER SET search_path = auth, pg_temp
        AS $$ SELECT users.user_id, users.password_hash FROM users WHERE email = asked AND state = 'active' $$
        """,
        "REVOKE ALL ON FUNCTION login_of FROM PUBLIC",
        "GRANT EXECUTE ON FUNCTION login_of TO auth_rpc",
    )
