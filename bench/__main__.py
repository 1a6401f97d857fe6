"""`python -m bench [NAME]`: measures side by side and prints a table and, as each bench's last line, its JSON."""

import argparse
import asyncio
import signal

import uvloop

from bench import auth, candles, disk, edge, memory, orders, ticks, up
from bench.rounds import FULL, SHORT, Form
from bench.stack import stack_of

ON_ONE_STACK = {
    "edge": edge.bench,
    "auth": auth.bench,
    "ticks": ticks.bench,
    "candles": candles.bench,
    "memory": memory.bench,
    "orders": orders.bench,
}
SERVICES = "auth,marketdata,feeds,orders"
"""Execution is started by the bench that measures with and without it."""


async def main(names: list[str], form: Form) -> None:
    if task := asyncio.current_task():
        # Whoever ends the bench ends the stack it has started, too.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    if on_stack := [name for name in names if name in ON_ONE_STACK]:
        async with stack_of(SERVICES) as stack:
            for name in on_stack:
                (await ON_ONE_STACK[name](stack, form)).show()
                await stack.close()
    if "up" in names:
        (await up.bench(form)).show()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    every = [*ON_ONE_STACK, "up"]
    parser.add_argument("names", metavar="NAME", nargs="*", choices=[*every, []], help=f"of {', '.join(every)}; all")
    parser.add_argument("--short", action="store_true", help="only show that it works: one round, a moment each")
    parser.add_argument("--rounds", type=int, help="of each measurement; medians are told")
    given = parser.parse_args()
    form = SHORT if given.short else FULL
    if not given.short:
        disk.refuse_memory()
    if given.rounds:
        form = Form(given.rounds, form.seconds, is_short=form.is_short)
    uvloop.run(main(given.names or every, form))
