"""Which access tokens are outdated is counted, so that no clock decides it."""

from migrations.shared import run

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run(
        "ALTER TABLE users ADD COLUMN token_generation bigint NOT NULL DEFAULT 0",
        "ALTER TABLE revocations ADD COLUMN generation bigint",
        # Tokens from before say no generation, and are refused.
        "UPDATE revocations SET generation = 1 WHERE not_before IS NOT NULL",
        "UPDATE users SET token_generation = 1 WHERE not_before IS NOT NULL",
        "GRANT UPDATE (token_generation), SELECT (token_generation) ON users TO auth_worker",
        "REVOKE UPDATE (not_before), SELECT (not_before) ON users FROM auth_worker",
        "ALTER TABLE users DROP COLUMN not_before",
        "ALTER TABLE revocations DROP COLUMN not_before",
    )


def downgrade() -> None:
    run(
        "ALTER TABLE revocations ADD COLUMN not_before timestamptz",
        "ALTER TABLE users ADD COLUMN not_before timestamptz",
        "GRANT UPDATE (not_before), SELECT (not_before) ON users TO auth_worker",
        "UPDATE revocations SET not_before = now() WHERE generation IS NOT NULL",
        "UPDATE users SET not_before = now() WHERE token_generation > 0",
        "ALTER TABLE revocations DROP COLUMN generation",
        "ALTER TABLE users DROP COLUMN token_generation",
    )
