"""How long the stack takes from the command to healthy, in an empty folder and then again in it, and what memory it holds."""

import asyncio
import time
from pathlib import Path

from bench.rounds import Form, Report, Values, series
from bench.stack import memory_megabytes, stack_in, temporary_folder, tradeloom

AIM_SECONDS = 12.0
AIM_MEGABYTES = 1_500.0
SETTLE_SECONDS = 1.0
"""After which memory is read: whoever was ready has by then let go of what starting took."""
PHASES = "phase_"
MEMORY = "memory_"


async def started(path: Path, form: Form) -> Values:
    """One start and stop of the stack in a folder."""
    # The short form shows that the whole can be measured, on the smallest stack there is.
    only = ("--only", "auth") if form.is_short else ()
    began = time.perf_counter()
    try:
        await tradeloom("up", "--detach", "--port", "0", *only, folder=path)
        seconds = time.perf_counter() - began
        stack = stack_in(path)
        await asyncio.sleep(SETTLE_SECONDS)
        memory = memory_megabytes(stack)
        phases = {f"{PHASES}{name}": end - start for name, (start, end) in stack.snapshot.phases.items()}
        ready = {f"ready_{each.name}": each.ready_seconds or 0.0 for each in stack.snapshot.processes}
    finally:
        began = time.perf_counter()
        await tradeloom("down", folder=path)
    return {
        "seconds": stack.snapshot.healthy_seconds or seconds,
        "command_seconds": seconds,
        "down_seconds": time.perf_counter() - began,
        "memory": sum(memory.values()),
        **phases,
        **ready,
        **{f"{MEMORY}{name}": megabytes for name, megabytes in memory.items()},
    }


async def bench(form: Form) -> Report:
    report = Report("up", form)
    colds: list[Values] = []
    warms: list[Values] = []
    for _ in range(form.rounds):
        with temporary_folder() as folder:
            colds.append(await started(folder, form))
            warms.append(await started(folder, form))
    aim, most = [AIM_SECONDS] * form.rounds, [AIM_MEGABYTES] * form.rounds
    seconds = {"cold": series(colds, "seconds"), "warm": series(warms, "seconds")}
    report.compare(
        "cold_vs_aim", "up to healthy, empty folder", subject=seconds["cold"], baseline=aim, unit="s", of="aim"
    )
    report.compare("warm_vs_aim", "up to healthy, again", subject=seconds["warm"], baseline=aim, unit="s", of="aim")
    report.compare("memory_vs_aim", "memory (PSS)", subject=series(colds, "memory"), baseline=most, unit="MB", of="aim")
    for name, values in seconds.items():
        report.note(f"{name}_seconds", values)
    report.note("memory_megabytes", series(colds, "memory"))
    report.tell("down_seconds", "down", series(colds, "down_seconds"), "s")
    for kind, measurements in (("cold", colds), ("warm", warms)):
        for name in [name for name in measurements[0] if name.startswith((PHASES, "ready_"))]:
            if all(name in values for values in measurements):
                label = name.replace(PHASES, "phase ").replace("ready_", "ready ")
                report.tell(f"{kind}_{name}_seconds", f"  {kind}: {label}", series(measurements, name), "s")
    for name in [name for name in colds[0] if name.startswith(MEMORY)]:
        report.tell(f"{name}_megabytes", f"  memory: {name.removeprefix(MEMORY)}", series(colds, name), "MB")
    report.limits = "Phases overlap; a service is ready some seconds after its own start, and all start at once."
    return report
