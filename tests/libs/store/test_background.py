import asyncio

import pytest

from libs.store import background
from libs.store.background import CANCEL_AGAIN_SECONDS, PAUSE_SECONDS_FIRST, PAUSE_SECONDS_MAX, Backoff, running


@pytest.mark.parametrize("failure", [ZeroDivisionError, asyncio.CancelledError])
async def test_failing_work_is_tried_again(caplog, failure):
    attempts, done = [], asyncio.Event()

    async def work() -> None:
        attempts.append(1)
        if len(attempts) < 3:
            raise failure
        done.set()
        await asyncio.Event().wait()

    async with running("work", work), asyncio.timeout(5):
        await done.wait()
    assert len(attempts) == 3
    assert "work failed; again in" in caplog.text


@pytest.mark.parametrize(("seconds_well", "pauses"), [(0.0, [0, 1, 2]), (0.02, [0, 0, 0])])
async def test_the_pause_grows_unless_the_work_went_well_for_long(seconds_well, pauses, monkeypatch):
    """Work that never returns says by its duration alone that it went well."""
    failures, done = [], asyncio.Event()

    class Watched(Backoff):
        def __init__(self) -> None:
            super().__init__(seconds_max=0.01)

        def next_seconds(self) -> float:
            failures.append(self.failures)
            return super().next_seconds() * 0

    async def work() -> None:
        if len(failures) == len(pauses):
            done.set()
            await asyncio.Event().wait()
        await asyncio.sleep(seconds_well)
        raise ZeroDivisionError

    monkeypatch.setattr(background, "Backoff", Watched)
    async with running("work", work), asyncio.timeout(5):
        await done.wait()
    assert failures == pauses


async def test_leaving_waits_until_the_work_has_cleaned_up():
    steps, started = [], asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            steps.append("cleaned up")

    async with running("work", work):
        await started.wait()
    assert steps == ["cleaned up"]


@pytest.mark.parametrize("swallows", [None, ZeroDivisionError])
async def test_work_that_swallowed_its_cancellation_ends_too(swallows):
    started = asyncio.Event()

    async def work() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if swallows:
                raise swallows from None

    async with asyncio.timeout(CANCEL_AGAIN_SECONDS), running("work", work):
        await started.wait()


async def test_work_that_goes_on_after_its_cancellation_is_cancelled_again(monkeypatch):
    monkeypatch.setattr(background, "CANCEL_AGAIN_SECONDS", 0.01)
    started, swallowed = asyncio.Event(), []

    async def work() -> None:
        while len(swallowed) < 2:
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed.append(1)
        await asyncio.Event().wait()

    async with asyncio.timeout(5), running("work", work):
        await started.wait()
    assert len(swallowed) == 2


def test_pauses_grow_up_to_their_bound():
    backoff = Backoff()
    pauses = [backoff.next_seconds() for _ in range(100)]
    assert pauses[0] <= PAUSE_SECONDS_FIRST
    assert PAUSE_SECONDS_MAX / 2 <= pauses[-1] <= max(pauses) <= PAUSE_SECONDS_MAX
    backoff.reset()
    assert backoff.next_seconds() <= PAUSE_SECONDS_FIRST
