"""A service whose facts do not flow says so where operators look, and takes no reader out of service for one of them."""

import asyncio
import json

import asyncpg
import pytest
from redis.asyncio import Redis
from tradeloom.marketdata.v1.events_pb2 import InstrumentChanged
from tradeloom.type.v1.fact_pb2 import Fact

from libs.store import relay
from libs.store.outbox import partition_of
from tests.mesh import Served

SOURCES = {
    "auth": ("auth", "users", "billing", "orders"),
    "users": ("auth", "orders"),
    "feeds": (),
    "marketdata": ("feeds",),
    "orders": ("marketdata", "execution", "users"),
    "execution": ("marketdata", "orders"),
}
SECONDS = 20.0


async def health(served: Served) -> tuple[int, str, dict[str, str]]:
    code, body = await served.probe()
    told = json.loads(body)
    return code, told["status"], told["checks"]


@pytest.mark.parametrize("word", SOURCES)
async def test_every_service_tells_how_its_facts_leave_and_how_it_follows_others(installation, word):
    async with installation.serve(word) as served, asyncio.timeout(SECONDS):
        while (told := await health(served))[1] != "healthy":
            await asyncio.sleep(0.05)
        assert "relay" in told[2]
        assert {name for name in told[2] if name.startswith("facts")} == {f"facts of {of}" for of in SOURCES[word]}
        missing = {f'tradeloom_outbox_waiting_seconds{{source="{word}"}}'}
        missing |= {f'tradeloom_facts_lag_seconds{{source="{of}"}}' for of in SOURCES[word]}
        while missing := {series for series in missing if series not in (await served.probe("/metrics"))[1]}:
            await asyncio.sleep(0.05)


async def test_a_poison_fact_is_told_and_leaves_the_service_in_service(installation, redis: Redis):
    poison = Fact(
        source="marketdata",
        key="SIM:POISON",
        sequence=1,
        kind=InstrumentChanged.DESCRIPTOR.full_name,
        payload=b"\xff",
    )
    async with installation.serve("orders") as orders, asyncio.timeout(SECONDS):
        stream = relay.stream_of("marketdata", partition_of(poison.key))
        await redis.xadd(stream, {"p": "0-0", "f": poison.SerializeToString()}, id="1-1")
        while (told := await health(orders))[1] != "degraded":
            await asyncio.sleep(0.05)
        assert told[0] == 200
        assert "DecodeError" in told[2]["facts of marketdata"]
        assert told[2]["facts of execution"] == "ok"


async def test_a_relay_that_does_not_get_on_takes_its_service_out_until_it_does(installation, redis, monkeypatch):
    monkeypatch.setattr(relay, "STUCK_SECONDS", 1.0)
    stream = relay.stream_of("orders", 0)
    await redis.set(stream, "no stream")
    superuser = await asyncpg.connect(installation.postgres.url(installation.database))
    async with installation.serve("orders") as orders, asyncio.timeout(2 * SECONDS):
        await superuser.execute(
            "INSERT INTO orders.outbox (partition, key, sequence, kind, payload) VALUES (0, 'key', 1, 'test', '')"
        )
        while (told := await health(orders))[0] != 503:
            await asyncio.sleep(0.05)
        assert "no fact has left" in told[2]["relay"]
        assert "WRONGTYPE" in told[2]["relay"]
        assert all(told[2][name] == "ok" for name in ("postgres", "redis"))
        await redis.delete(stream)
        while (await health(orders))[1] != "healthy":
            await asyncio.sleep(0.05)
    await superuser.close()
