"""Keep corporate actions with the times at which they were known."""

from migrations.shared import grant, run

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    run(
        # The numbers count what was put and withdrawn of an instrument, in the order of the commits: whoever has seen the
        # first so many can see exactly these again. Nothing but a withdrawal is ever changed.
        """
        CREATE TABLE corporate_actions (
          action_id uuid PRIMARY KEY, instrument_id text NOT NULL REFERENCES instruments,
          kind text NOT NULL CHECK (kind IN ('split', 'cash_dividend')), ex_date date NOT NULL,
          new_shares numeric CHECK (new_shares > 0), old_shares numeric CHECK (old_shares > 0),
          amount numeric CHECK (amount > 0), currency text,
          known_time timestamptz NOT NULL, put_number bigint NOT NULL,
          withdrawn_time timestamptz CHECK (withdrawn_time >= known_time), withdrawn_number bigint,
          create_time timestamptz NOT NULL DEFAULT now(),
          UNIQUE (instrument_id, put_number),
          CHECK ((kind = 'split') = (new_shares IS NOT NULL AND old_shares IS NOT NULL)),
          CHECK ((kind = 'cash_dividend') = (amount IS NOT NULL AND currency IS NOT NULL)),
          CHECK ((withdrawn_time IS NULL) = (withdrawn_number IS NULL)))
        """,
        *grant("marketdata", "corporate_actions", rpc="SELECT", worker="SELECT, INSERT, UPDATE"),
    )


def downgrade() -> None:
    run("DROP TABLE corporate_actions")
