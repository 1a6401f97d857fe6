"""Play several files: a replay names its files, each with what its trades are of."""

from migrations.shared import run

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run(
        """
        UPDATE feed_subscriptions SET source = jsonb_build_object('replay', jsonb_build_object(
          'speed', source->'replay'->'speed',
          'files', jsonb_build_array(jsonb_build_object(
            'file', source->'replay'->'file', 'instrument', source->'replay'->'instrument'))))
        WHERE source ? 'replay'
        """
    )


def downgrade() -> None:
    run(
        """
        UPDATE feed_subscriptions SET source = jsonb_build_object('replay', jsonb_build_object(
          'speed', source->'replay'->'speed', 'file', source->'replay'->'files'->0->'file',
          'instrument', source->'replay'->'files'->0->'instrument'))
        WHERE source ? 'replay'
        """
    )
