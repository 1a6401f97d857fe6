"""The embedded Valkey and what each service may do there."""

import asyncio
import signal
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from libs.bus import feed
from libs.bus.budget import Budget, Limits, Use
from libs.bus.feed import Batch, Cursor
from libs.stack.probes import valkey_answers
from libs.stack.supervisor import Record
from libs.stack.valkey import ValkeyServer, valkey
from services.feeds.room import TICKS_BYTES_MAX
from tests.shape.test_memory import RUNNING_FEEDS_MAX, facts_bytes, memory_bytes

WAIT_SECONDS = 20.0
KEPT = "facts:orders:0"
PASSWORDS = {word: f"devl-{word}" for word in ("stack", "orders", "execution", "marketdata", "feeds")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("valkey")


@pytest.fixture
async def server(folder):
    async with valkey(folder, passwords=PASSWORDS) as server:
        yield server


@asynccontextmanager
async def client(server: ValkeyServer, user: str):
    redis = Redis.from_url(server.url(user))
    try:
        yield redis
    finally:
        await redis.aclose()


async def test_nobody_gets_in_without_a_name_and_its_password(server):
    for url in (f"redis://127.0.0.1:{server.port}", f"redis://orders:wrong@127.0.0.1:{server.port}"):
        redis = Redis.from_url(url)
        with pytest.raises(AuthenticationError):
            await redis.ping()
        await redis.aclose()


async def test_a_service_tells_its_own_facts_and_everybody_reads_them(server):
    async with client(server, "orders") as orders, client(server, "execution") as execution:
        await orders.xadd("facts:orders:3", {"f": b"placed"})
        assert await execution.xread({"facts:orders:3": "0"})
        assert await orders.xinfo_stream("facts:orders:3")
        with pytest.raises(NoPermissionError):
            await execution.xadd("facts:orders:3", {"f": b"forged"})
        with pytest.raises(NoPermissionError):
            await execution.delete("facts:orders:3")


async def test_a_service_asks_another_to_tell_its_facts_again(server):
    async with client(server, "orders") as orders, client(server, "execution") as execution:
        await execution.xadd("facts:orders:replay", {"key": "a", "after": 7})
        assert await orders.xread({"facts:orders:replay": "0"})


async def test_only_feeds_tells_ticks_and_quotes(server):
    async with client(server, "feeds") as feeds, client(server, "marketdata") as marketdata:
        await feeds.eval("redis.call('XADD', KEYS[1], '1-1', 'b', 'x')", 1, "ticks:SIM:BTCUSDT")
        await feeds.set("quote:SIM:BTCUSDT", b"quote")
        assert await marketdata.xread({"ticks:SIM:BTCUSDT": "0"})
        assert await marketdata.mget(["quote:SIM:BTCUSDT"]) == [b"quote"]
        with pytest.raises(NoPermissionError):
            await marketdata.set("quote:SIM:BTCUSDT", b"forged")
        with pytest.raises(ResponseError, match="No permissions"):
            await marketdata.eval("return redis.call('SET', 'quote:SIM:BTCUSDT', 'forged')", 0)
        await marketdata.set("ticks-stored:SIM:BTCUSDT", "1-1")
        assert await feeds.eval("return redis.call('GET', KEYS[1])", 1, "ticks-stored:SIM:BTCUSDT") == b"1-1"


async def test_orders_reads_quotes_and_no_more_of_the_market(server):
    async with client(server, "orders") as orders:
        await orders.mget(["quote:SIM:BTCUSDT"])
        with pytest.raises(NoPermissionError):
            await orders.get("ticks-stored:SIM:BTCUSDT")


async def test_who_asks_venues_takes_from_their_budgets_and_nobody_else(server):
    limits = Limits(capacity=10, units_per_second=1)
    for user in ("feeds", "execution"):
        async with client(server, user) as service:
            await Budget(service, "BINANCE", "default", limits).take(1, Use.CANCEL, wait_seconds_max=0)
            assert (await Budget(service, "BINANCE", "default", limits).state()).available < 10
    async with client(server, "orders") as orders:
        with pytest.raises(NoPermissionError):
            await Budget(orders, "BINANCE", "default", limits).take(1, Use.CANCEL, wait_seconds_max=0)


async def test_keys_of_no_stream_that_is_told_are_nobodys(server):
    for user in ("orders", "feeds", "marketdata"):
        async with client(server, user) as service:
            for key in (f"{user}:1001", "ticks", "elsewhere:1"):
                with pytest.raises(NoPermissionError):
                    await service.set(key, "1")


@pytest.mark.parametrize(
    "command", ["FLUSHALL", "KEYS *", "CONFIG GET *", "FUNCTION LIST", "ACL LIST", "SHUTDOWN", "MONITOR"]
)
async def test_no_service_administers_the_server(server, command):
    async with client(server, "orders") as orders:
        with pytest.raises(NoPermissionError):
            await orders.execute_command(*command.split())


async def test_what_was_written_is_there_after_a_restart(folder):
    async with valkey(folder, passwords=PASSWORDS) as server, client(server, "orders") as orders:
        await orders.set(KEPT, "here")
    async with valkey(folder, passwords=PASSWORDS) as server, client(server, "orders") as orders:
        assert await orders.get(KEPT) == b"here"


def append_only_file(folder: Path) -> Path:
    [file] = (folder / "data" / "appendonlydir").glob("*.incr.aof")
    return file


async def test_a_file_torn_at_its_end_is_cut_there(tmp_path):
    async with valkey(tmp_path, passwords=PASSWORDS) as server, client(server, "orders") as orders:
        await orders.set(KEPT, "here")
    with append_only_file(tmp_path).open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$4\r\nor")
    async with valkey(tmp_path, passwords=PASSWORDS) as server, client(server, "orders") as orders:
        assert await orders.get(KEPT) == b"here"


async def test_a_broken_file_is_set_aside_and_kept(tmp_path):
    async with valkey(tmp_path, passwords=PASSWORDS) as server, client(server, "orders") as orders:
        await orders.set(KEPT, "here")
    file = append_only_file(tmp_path)
    file.write_bytes(b"nonsense\r\n" + file.read_bytes())
    async with valkey(tmp_path, passwords=PASSWORDS) as server, client(server, "orders") as orders:
        assert await orders.get(KEPT) is None
    assert len(list((tmp_path / "data").glob("broken-*"))) == 1


async def test_it_comes_back_by_itself_with_what_it_had_when_it_is_killed(tmp_path):
    async with valkey(tmp_path, passwords=PASSWORDS) as server:
        async with client(server, "orders") as orders:
            await orders.set(KEPT, "here")
        record = Record.read(tmp_path / "valkey.json")
        assert record is not None
        process = psutil.Process(record.owned.pid)
        process.send_signal(signal.SIGKILL)
        async with asyncio.timeout(WAIT_SECONDS):
            while not await valkey_answers(server.port, "orders", PASSWORDS["orders"]) or process.is_running():
                await asyncio.sleep(0.02)
        async with client(server, "orders") as orders:
            assert await orders.get(KEPT) == b"here"


async def test_ticks_that_fill_all_they_may_stop_neither_cancels_nor_facts(tmp_path: Path):
    ids = [f"BINANCE:S{number}" for number in range(RUNNING_FEEDS_MAX * 50)]
    share = TICKS_BYTES_MAX // len(ids)
    async with (
        valkey(tmp_path, passwords=PASSWORDS) as server,
        client(server, "feeds") as feeds,
        client(server, "execution") as execution,
        client(server, "orders") as orders,
    ):
        for number, instrument_id in enumerate(ids):
            batch = bytes(50_000 if number % 2 else 12_000)
            some = [
                Batch(Cursor(instrument_id, 1, sequence), sequence, batch, b"quote")
                for sequence in range(1, round(1.2 * share / len(batch)))
            ]
            await feed.append(feeds, some, bytes_max=share)
        used = (await feeds.info("memory"))["used_memory"]
        assert 0.75 * TICKS_BYTES_MAX < used < memory_bytes() - facts_bytes()
        budget = Budget(execution, "BINANCE", "default", Limits(capacity=10, units_per_second=1))
        await budget.take(1, Use.CANCEL, wait_seconds_max=0)
        await orders.xadd("facts:orders:3", {"f": b"cancelled"})
        await feed.append(feeds, [Batch(Cursor(ids[0], 1, 10**6), 10**6, bytes(50_000), b"quote")], bytes_max=share)
