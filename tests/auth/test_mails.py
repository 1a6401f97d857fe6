"""Mails on their way: none is lost, none rests readable, and one that cannot be sent holds up no other."""

import asyncio
from dataclasses import dataclass, field

import pytest
from tradeloom.auth.v1 import auth_pb2

from libs.ids import uuid7
from libs.mail import Mail, MailRefused, MailUnavailable
from libs.store.database import open_database
from services.auth import mails
from services.auth.keys import KeyBox
from services.auth.mails import Kind, Outgoing
from tests.auth.people import PASSWORD, letter_to, letters, registered, stub_of
from tests.mesh import DATA_KEY


@dataclass
class Postbox:
    """Refuses whom a test names, and keeps the rest."""

    refusing: dict[str, Exception] = field(default_factory=dict)
    sent: list[Mail] = field(default_factory=list)

    async def send(self, mail: Mail) -> None:
        if error := self.refusing.get(mail.to):
            raise error
        self.sent.append(mail)


@pytest.fixture
async def worker(bare_installation):
    async with open_database(bare_installation.url("auth_worker")) as database:
        yield database


@pytest.fixture
def outgoing() -> Outgoing:
    return Outgoing(KeyBox(DATA_KEY), uuid7, "https://trade.example.com")


async def with_people(installation, count: int) -> list[str]:
    """People whose mails nobody sends but the test."""
    async with installation.connect() as rows:
        people = [uuid7() for _ in range(count)]
        for user_id in people:
            await rows.execute(
                "INSERT INTO auth.users (user_id, email, full_name, password_hash, create_time) VALUES ($1, $2, '', '', now())",
                user_id,
                f"{user_id}@example.com",
            )
    return people


async def put(worker, outgoing: Outgoing, user_id, token: str = "secret-token") -> str:
    email = f"{user_id}@example.com"
    async with worker.transaction(user_id) as rows:
        await outgoing.add(rows, user_id, Kind.RESET_PASSWORD, email, token=token)
    return email


async def test_a_mail_rests_sealed_and_goes_once(bare_installation, worker, outgoing):
    (user_id,) = await with_people(bare_installation, 1)
    email = await put(worker, outgoing, user_id)
    box = Postbox()
    async with bare_installation.connect() as rows:
        resting = str(await rows.fetch("SELECT * FROM auth.mails"))
        assert "secret-token" not in resting
        assert email not in resting
        assert await mails.send_due(worker, outgoing, box) == 1
        assert await mails.send_due(worker, outgoing, box) == 0
        assert await rows.fetchval("SELECT count(*) FROM auth.mails") == 0
    assert [(mail.to, mail.link) for mail in box.sent] == [
        (email, "https://trade.example.com/#/reset-password/secret-token")
    ]


async def test_two_replicas_send_it_once(bare_installation, worker, outgoing):
    for user_id in await with_people(bare_installation, 10):
        await put(worker, outgoing, user_id)
    box = Postbox()
    await asyncio.gather(*(mails.send_due(worker, outgoing, box) for _ in range(3)))
    assert len({mail.to for mail in box.sent}) == len(box.sent) == 10


async def test_what_cannot_be_sent_now_is_tried_later_and_holds_up_no_other(bare_installation, worker, outgoing):
    first, second = await with_people(bare_installation, 2)
    waiting, going = await put(worker, outgoing, first), await put(worker, outgoing, second)
    box = Postbox({waiting: MailUnavailable("later")})
    await mails.send_due(worker, outgoing, box)
    assert [mail.to for mail in box.sent] == [going]
    async with bare_installation.connect() as rows:
        row = await rows.fetchrow("SELECT try_count, extract(epoch FROM try_time - now()) AS wait FROM auth.mails")
        assert row["try_count"] == 1
        assert 25 < row["wait"] <= mails.TRY_SECONDS_FIRST
        assert await mails.send_due(worker, outgoing, box) == 0
        box.refusing.clear()
        await rows.execute("UPDATE auth.mails SET try_time = now()")
        await mails.send_due(worker, outgoing, box)
    assert [mail.to for mail in box.sent] == [going, waiting]


async def test_what_will_never_be_taken_and_what_is_too_old_is_given_up(bare_installation, worker, outgoing):
    first, second = await with_people(bare_installation, 2)
    refused, old = await put(worker, outgoing, first), await put(worker, outgoing, second)
    box = Postbox({refused: MailRefused("550")})
    async with bare_installation.connect() as rows:
        await rows.execute("UPDATE auth.mails SET create_time = now() - interval '2 days' WHERE user_id = $1", second)
        await mails.send_due(worker, outgoing, box)
        assert await rows.fetchval("SELECT count(*) FROM auth.mails") == 0
    assert box.sent == []
    assert old


@pytest.mark.parametrize(("environment", "is_logged"), [("development", True), ("production", False)])
async def test_in_production_no_log_holds_what_sets_a_password(bare_installation, environment, is_logged):
    with bare_installation.start("auth", environment=environment) as process:
        await process.served.until_ready()
        person = await registered(process.served)
        letter = await letter_to(bare_installation.mails, person.email, "Verify")
        async with asyncio.timeout(5):
            while person.email not in process.logged():
                await asyncio.sleep(0.02)
        assert (letter.token in process.logged()) is is_logged
        await process.served.close()


async def test_a_killed_auth_sends_the_mail_when_it_is_back(bare_installation, tmp_path):
    """Killed after the registration and before anybody looked for mails."""
    with bare_installation.start("auth", mail_folder=str(tmp_path / "file" / "mails")) as process:
        # Nothing can be written there, so nothing is sent.
        (tmp_path / "file").write_text("")
        auth = process.served
        await auth.until_ready()
        person = await registered(auth)
        await auth.close()
        process.kill()
        (tmp_path / "file").unlink()
        async with bare_installation.connect() as rows:
            assert await rows.fetchval("SELECT count(*) FROM auth.mails") == 1
            await rows.execute("UPDATE auth.mails SET try_time = now()")
        process.start()
        await auth.until_ready()
        letter = await letter_to(tmp_path / "file" / "mails", person.email, "Verify")
        assert len(letters(tmp_path / "file" / "mails", person.email)) == 1
        verify = auth_pb2.VerifyEmailRequest(token=letter.token)
        assert (await stub_of(auth).VerifyEmail(verify)).email == person.email
        login = auth_pb2.LoginRequest(email=person.email, password=PASSWORD)
        assert (await stub_of(auth).Login(login)).user.email_verified
        await auth.close()
