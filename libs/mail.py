"""Sending mail: through an SMTP server, or, where there is none, into a folder whose mails people open themselves."""

import asyncio
import logging
import ssl
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qs, unquote, urlsplit

from libs.errors import Unavailable

SMTP_SECONDS = 20.0
FOLDER_MAILS_MAX = 500
"""The oldest go first; a folder is for looking at, not for keeping."""

log = logging.getLogger(__name__)


class MailUnavailable(Unavailable):
    """The mail server does not take it now."""

    def __init__(self, message: str) -> None:
        super().__init__(message, dependency="mail")


class MailRefused(Exception):
    """The mail server will never take it, such as for an address that does not exist."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """A text for one person. mail_id makes its Message-ID: a mail that is sent twice is shown once by many programs."""

    mail_id: str
    to: str
    subject: str
    text: str
    link: str = ""
    """What the text is about, for the log of who has no mail server."""


class Mailer(Protocol):
    async def send(self, mail: Mail) -> None:
        """Raises MailUnavailable, or MailRefused."""
        ...


def message_from(mail: Mail, sender: str) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = sender, mail.to, mail.subject
    message["Date"] = formatdate()
    domain = sender.rpartition("@")[2].rstrip(">")
    message["Message-ID"] = f"<{mail.mail_id}@{domain}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(mail.text)
    return message


class Folder:
    """Writes each mail into a file and says so in the log: for one machine and its owner.

    With the link only where link_is_logged: whoever reads it can set the password of whom it is for.
    """

    def __init__(self, folder: Path, sender: str, *, link_is_logged: bool) -> None:
        self._folder, self._sender, self._link_is_logged = folder, sender, link_is_logged

    async def send(self, mail: Mail) -> None:
        await asyncio.to_thread(self._write, message_from(mail, self._sender), mail.mail_id)
        log.info("mail to %s: %s %s", mail.to, mail.subject, mail.link if self._link_is_logged else "")

    def _write(self, message: EmailMessage, name: str) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._folder / f"{name}.new"
        new.write_bytes(message.as_bytes())
        new.replace(self._folder / f"{name}.eml")
        for old in sorted(self._folder.glob("*.eml"))[:-FOLDER_MAILS_MAX]:
            old.unlink(missing_ok=True)


class Smtp:
    """smtp://user:password@host:port speaks TLS after STARTTLS, smtps:// from the start.

    Only `?tls=none` goes without, for a server on this machine.
    """

    def __init__(self, url: str, sender: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("smtp", "smtps") or not parts.hostname:
            raise ValueError("must be smtp://user:password@host:port or smtps://…")
        self._host, self._sender = parts.hostname, sender
        self._implicit = parts.scheme == "smtps"
        self._plain = parse_qs(parts.query).get("tls") == ["none"]
        self._port = parts.port or (465 if self._implicit else 587)
        self._user = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None

    async def send(self, mail: Mail) -> None:
        # Late: only who has a server for mail needs it.
        import aiosmtplib

        try:
            await aiosmtplib.send(
                message_from(mail, self._sender),
                hostname=self._host,
                port=self._port,
                username=self._user,
                password=self._password,
                use_tls=self._implicit,
                start_tls=not (self._implicit or self._plain),
                tls_context=None if self._plain else ssl.create_default_context(),
                timeout=SMTP_SECONDS,
            )
        except aiosmtplib.SMTPRecipientsRefused as error:
            if all(500 <= refused.code < 600 for refused in error.recipients):
                raise MailRefused(f"the mail server refuses the address: {error.recipients[0].code}") from error
            raise MailUnavailable("the mail server does not take the address now") from error
        except (aiosmtplib.SMTPException, OSError) as error:
            # Its text may hold what was sent.
            raise MailUnavailable(f"the mail server does not take mail now: {type(error).__name__}") from error
