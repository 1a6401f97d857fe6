"""Mail: a real SMTP server takes it over TLS with a password, and each of its answers means the right thing."""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, Envelope, LoginPassword

from libs import mail
from libs.mail import Folder, Mail, MailRefused, MailUnavailable, Smtp
from tests.servers import free_port

SENDER = "Tradeloom <no-reply@tradeloom.local>"
LETTER = Mail(mail_id="m1", to="ada@example.com", subject="Grüße", text="https://x/#/reset-password/t\n", link="l")


@dataclass
class Postman:
    """Answers what a test wants, and keeps what it took."""

    answer: str = "250 OK"
    taken: list[Envelope] = field(default_factory=list)

    async def handle_RCPT(self, server: Any, session: Any, envelope: Envelope, address: str, options: Any) -> str:
        if self.answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.answer

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        self.taken.append(envelope)
        return "250 OK"


def authenticated(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    right = isinstance(data, LoginPassword) and (data.login, data.password) == (b"us er", b"p@ss")
    return AuthResult(success=right)


@pytest.fixture
def postman() -> Postman:
    return Postman()


@pytest.fixture
def server(postman: Postman, pki: Path) -> Iterator[Controller]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "web.pem", pki / "web.key")
    controller = Controller(
        postman,
        hostname="127.0.0.1",
        port=free_port(),
        tls_context=context,
        require_starttls=True,
        authenticator=authenticated,
        auth_required=True,
    )
    controller.start()
    yield controller
    controller.stop()


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch, pki: Path) -> None:
    """As where the server's authority is one of the machine's."""
    monkeypatch.setattr(mail.ssl, "create_default_context", lambda: make(cafile=str(pki / "ca.pem")))


make = ssl.create_default_context


def url(server: Controller, credentials: str = "us%20er:p%40ss@", host: str = "localhost", query: str = "") -> str:
    return f"smtp://{credentials}{host}:{server.port}{query}"


@pytest.mark.usefixtures("trusting")
async def test_a_mail_arrives_whole_over_tls_with_the_password(server: Controller, postman: Postman) -> None:
    await Smtp(url(server), SENDER).send(LETTER)
    (envelope,) = postman.taken
    assert envelope.rcpt_tos == ["ada@example.com"]
    import email
    from email import policy

    message = email.message_from_bytes(envelope.content or b"", policy=policy.default)  # type: ignore[arg-type]
    assert (message["Subject"], message["From"], message["To"]) == ("Grüße", SENDER, "ada@example.com")
    assert message["Message-ID"] == "<m1@tradeloom.local>"
    body = message.get_body()
    assert body is not None
    assert body.get_content().splitlines() == LETTER.text.splitlines()


@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize("answer", ["450 later", "421 closing"])
async def test_not_now_is_told_from_never(server: Controller, postman: Postman, answer: str) -> None:
    postman.answer = answer
    with pytest.raises(MailUnavailable):
        await Smtp(url(server), SENDER).send(LETTER)
    postman.answer = "550 no such person"
    with pytest.raises(MailRefused):
        await Smtp(url(server), SENDER).send(LETTER)
    assert postman.taken == []


async def test_a_server_whose_authority_nobody_trusts_is_sent_nothing(server: Controller, postman: Postman) -> None:
    with pytest.raises(MailUnavailable):
        await Smtp(url(server), SENDER).send(LETTER)
    assert postman.taken == []


@pytest.mark.usefixtures("trusting")
async def test_a_wrong_password_and_nobody_there_are_no_error_of_the_mail(server: Controller) -> None:
    for wrong in (url(server, "user:wrong@"), f"smtp://localhost:{free_port()}"):
        with pytest.raises(MailUnavailable) as caught:
            await Smtp(wrong, SENDER).send(LETTER)
        assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("wrong", ["http://x", "smtp://", "mail.example.com"])
def test_what_is_no_address_of_a_mail_server_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="smtp://"):
        Smtp(wrong, SENDER)


async def test_a_folder_keeps_the_newest_mails_and_the_log_shows_the_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mail, "FOLDER_MAILS_MAX", 2)
    folder = Folder(tmp_path / "mails", SENDER, link_is_logged=True)
    for number in range(4):
        with caplog.at_level("INFO"):
            await folder.send(Mail(mail_id=f"m{number}", to="a@b.c", subject="s", text="t", link=f"https://{number}"))
    assert [file.name for file in sorted((tmp_path / "mails").iterdir())] == ["m2.eml", "m3.eml"]
    assert "https://3" in caplog.text
    assert (tmp_path / "mails").stat().st_mode & 0o777 == 0o700


async def test_no_link_is_logged_where_it_is_not_wanted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = Folder(tmp_path, SENDER, link_is_logged=False)
    with caplog.at_level("DEBUG"):
        await folder.send(Mail(mail_id="m", to="a@b.c", subject="s", text="t", link="https://secret"))
    assert "a@b.c" in caplog.text
    assert "https://secret" not in caplog.text
