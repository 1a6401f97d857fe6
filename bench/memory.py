"""What memory the marketdata service holds while ten million ticks are stored and handed to a thousand subscribers."""

import asyncio
from contextlib import AsyncExitStack

import psutil

from bench.rounds import Form, Report
from bench.stack import Stack, pss_megabytes
from bench.ticks import CONNECTIONS, STREAM, Feeder, Side, Subscribers, announce_stored, next_epoch, reading
from libs.bus.connection import open_redis

TICKS, SHORT_TICKS = 10_000_000, 20_000
INSTRUMENTS = [f"FILE:BENCH{number}" for number in range(10)]
"""Each has a tenth of the subscribers and of the ticks: each of a million goes to a hundred."""
SUBSCRIBERS, SHORT_SUBSCRIBERS = 1_000, 20
USERS, SHORT_USERS = 20, 2
SAMPLE_SECONDS = 0.5
SETTLE_SECONDS = 5.0


async def bench(stack: Stack, form: Form) -> Report:
    report = Report("memory", form)
    ticks, count, users = (
        (SHORT_TICKS, SHORT_SUBSCRIBERS, SHORT_USERS) if form.is_short else (TICKS, SUBSCRIBERS, USERS)
    )
    sessions = await stack.users(users)
    await announce_stored(stack, INSTRUMENTS)
    service = Side(STREAM, [stack.direct("marketdata") for _ in range(CONNECTIONS)], stack.pid("marketdata"))
    process = psutil.Process(service.pid)
    before = pss_megabytes(process)
    async with open_redis(stack.redis_url("feeds")) as redis, AsyncExitStack() as around:
        feeders = [Feeder(redis, each, await next_epoch(redis, each)) for each in INSTRUMENTS]
        for feeder in feeders:
            await feeder.append(1)
        audience = [
            Subscribers(service, count // len(feeders), sessions, feeder.instrument_id, feeder.batch_bytes)
            for feeder in feeders
        ]
        for subscribers in audience:
            await around.enter_async_context(reading(subscribers))
        subscribed = pss_megabytes(process)
        taken: list[tuple[float, float]] = []

        async def watch() -> None:
            while True:
                delivered = sum(feeder.ticks(each) for feeder, each in zip(feeders, audience, strict=True)) / (
                    count // len(feeders)
                )
                taken.append((delivered, pss_megabytes(process)))
                await asyncio.sleep(SAMPLE_SECONDS)

        watching = asyncio.create_task(watch())
        await asyncio.gather(
            *(
                feeder.deliver(subscribers, ticks // len(feeders))
                for feeder, subscribers in zip(feeders, audience, strict=True)
            )
        )
        for feeder in feeders:
            await feeder.stored()
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    if not form.is_short:
        await asyncio.sleep(SETTLE_SECONDS)
    first, second = (
        [megabytes for delivered, megabytes in taken if (delivered > ticks / 2) is late] or [subscribed]
        for late in (False, True)
    )
    report.compare(
        "growth",
        f"{ticks:,} ticks to {count:,} subscribers and into Postgres, the most held",
        subject=[max(second)],
        baseline=[max(first)],
        unit="MB",
        of="in the first half",
    )
    for name, what, megabytes in (
        ("before", "before anybody subscribed", before),
        ("subscribed", "subscribed to, without ticks", subscribed),
        ("most", "at most", max(*first, *second)),
        ("after", "when all had gone", pss_megabytes(process)),
    ):
        report.tell(f"{name}_megabytes", what, [megabytes], "MB")
    report.draw([f"{delivered:>12,.0f} ticks {megabytes:8.1f} MB" for delivered, megabytes in thinned(taken)])
    report.limits = "Memory is proportional (PSS), looked at twice a second. One run, however many rounds."
    return report


def thinned(taken: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Some twenty of them."""
    return taken[:: max(1, len(taken) // 20)]
