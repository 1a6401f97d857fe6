"""Mails on their way: written in the transaction that makes them necessary, sent by a worker, at least once."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from uuid import UUID

from libs.mail import Mail, Mailer, MailRefused, MailUnavailable
from libs.store.database import Connection, Database
from services.auth.domain import RESET_LINK_SECONDS, VERIFY_LINK_SECONDS
from services.auth.keys import KeyBox

MAILS_AT_ONCE = 20
TRY_SECONDS_FIRST = 30.0
"""Longer than one attempt may take: until then nobody else tries."""
TRY_SECONDS_MAX = 3_600.0
KEPT = timedelta(days=1)
"""A mail that could not be sent for so long is given up; by then its reader has asked for another."""

log = logging.getLogger(__name__)


class Kind(Enum):
    VERIFY_EMAIL = "verify_email"
    RESET_PASSWORD = "reset_password"  # noqa: S105 (a name)
    PASSWORD_CHANGED = "password_changed"  # noqa: S105 (a name)
    TOTP_ENABLED = "totp_enabled"
    TOTP_DISABLED = "totp_disabled"
    TOTP_TAKEN_AWAY = "totp_taken_away"
    SIGNED_IN_ELSEWHERE = "signed_in_elsewhere"
    API_KEY_CREATED = "api_key_created"
    DELETION_SCHEDULED = "deletion_scheduled"
    DELETION_CANCELLED = "deletion_cancelled"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Puts mails on their way; what is in them rests sealed."""

    box: KeyBox
    next_id: Callable[[], UUID]
    public_url: str

    async def add(
        self, rows: Connection, user_id: UUID, kind: Kind, email: str, *, token: str = "", name: str = ""
    ) -> None:
        mail_id = self.next_id()
        content = json.dumps({"email": email, "token": token, "name": name}).encode()
        await rows.execute(
            "INSERT INTO mails (mail_id, user_id, kind, sealed) VALUES ($1, $2, $3, $4)",
            mail_id,
            user_id,
            kind.value,
            self.box.seal_bytes("mails", str(mail_id), content),
        )

    def mail_from(self, mail_id: UUID, kind: Kind, sealed: bytes) -> Mail:
        content = json.loads(self.box.open_bytes("mails", str(mail_id), sealed))
        return written(kind, str(mail_id), self.public_url, **content)


async def send_due(worker: Database, outgoing: Outgoing, mailer: Mailer) -> int:
    """Sends what is due, oldest first; how many there were."""
    async with worker.reading() as rows:
        due = await rows.fetch(
            "SELECT mail_id, user_id, kind, sealed FROM mails WHERE try_time <= now() ORDER BY try_time LIMIT $1",
            MAILS_AT_ONCE,
        )
    for row in due:
        await send_one(worker, outgoing, mailer, row["mail_id"], row["user_id"])
    return len(due)


async def send_one(worker: Database, outgoing: Outgoing, mailer: Mailer, mail_id: UUID, user_id: UUID) -> None:
    """Killed after the sending and before the row goes, it is sent once more; never is it lost."""
    async with worker.transaction(user_id) as rows:
        # Of two replicas one gets it: the other finds that it is no longer due.
        mine = await rows.fetchrow(
            """
            UPDATE mails SET try_count = try_count + 1,
              try_time = now() + make_interval(secs => least($2 * 2 ^ try_count, $3))
            WHERE mail_id = $1 AND try_time <= now()
            RETURNING kind, sealed, try_count, now() - create_time > $4::interval AS is_old
            """,
            mail_id,
            TRY_SECONDS_FIRST,
            TRY_SECONDS_MAX,
            KEPT,
        )
    if mine is None:
        return
    if mine["is_old"]:
        log.error("mail %s of the kind %s could not be sent for a day and is given up", mail_id, mine["kind"])
    else:
        try:
            await mailer.send(outgoing.mail_from(mail_id, Kind(mine["kind"]), mine["sealed"]))
        except MailUnavailable as error:
            log.warning("mail %s is tried again later (%d times so far): %s", mail_id, mine["try_count"], error)
            return
        except MailRefused as error:
            log.warning("mail %s is given up: %s", mail_id, error)
    async with worker.transaction(user_id) as rows:
        await rows.execute("DELETE FROM mails WHERE mail_id = $1", mail_id)


def written(kind: Kind, mail_id: str, public_url: str, *, email: str, token: str, name: str) -> Mail:
    """The text in plain words. The token stands behind the #, which no browser sends to a server or tells another."""
    link = ""
    if kind is Kind.VERIFY_EMAIL:
        link = f"{public_url}/#/verify-email/{token}"
        subject = "Verify your e-mail address"
        text = (
            "Welcome to Tradeloom. Open this link to prove that the address is yours:\n\n"
            f"{link}\n\nIt works once, for {VERIFY_LINK_SECONDS // 86_400} days."
            " If you did not register, do nothing: without the link nobody trades with real money."
        )
    elif kind is Kind.RESET_PASSWORD:
        link = f"{public_url}/#/reset-password/{token}"
        subject = "Set a new password"
        text = (
            "Somebody, hopefully you, asked for a new password. Open this link to set it:\n\n"
            f"{link}\n\nIt works once, for {RESET_LINK_SECONDS // 60} minutes."
            " If it was not you, do nothing: your password stays as it is."
        )
    elif kind is Kind.DELETION_SCHEDULED:
        subject = "Your account is going to be deleted"
        text = (
            f"Everything you have here is deleted for good, not before {name}. Until then you may stay: sign in at"
            f' {public_url} and choose "Keep my account". Before the end your data is put together once more for you to'
            " download.\n\nIf you did not ask for this, keep your account now, and set a new password:"
            f" {public_url}/#/reset-password That ends every session. Then look through your API keys."
        )
    else:
        subject, what = NOTICES[kind]
        about = f" ({name})" if name else ""
        text = (
            f"{what}{about}.\n\nIf it was not you, reset your password now: {public_url}/#/reset-password"
            " That ends every session. Then look through your API keys."
        )
    return Mail(mail_id=mail_id, to=email, subject=f"{subject} - Tradeloom", text=text + "\n", link=link)


NOTICES = {
    Kind.PASSWORD_CHANGED: ("Your password was changed", "The password of your account was changed"),
    Kind.TOTP_ENABLED: ("Second factor enabled", "A second factor is now asked for when you sign in"),
    Kind.TOTP_DISABLED: ("Second factor disabled", "The second factor of your account was disabled"),
    Kind.TOTP_TAKEN_AWAY: (
        "Second factor taken away",
        "An administrator took the second factor of your account away and ended its sessions: set up another one",
    ),
    Kind.SIGNED_IN_ELSEWHERE: (
        "A sign-in from a new place",
        "Somebody signed in to your account from where you had not signed in before",
    ),
    Kind.API_KEY_CREATED: ("A new API key", "An API key of your account was made"),
    Kind.DELETION_CANCELLED: ("Your account stays", "The deletion of your account was cancelled"),
}
"""Of what changes who can get in, or whether there is anything to get into, the owner hears: subject, and what happened."""
