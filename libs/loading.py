"""When Python looks for objects that only each other hold: hardly while a program loads, and as ever once it works.

Loading lets go of nothing, and looking through all of it again and again takes a third of the time until a service works.
"""

import gc
import sys

OBJECTS_MAX = 300_000
"""So many new ones before they are looked through while a program loads; a service has up to 220,000 by then."""
USUAL = gc.get_threshold()


def begin() -> None:
    """For the package of a program, before it loads anything; nothing where the program is another that imports it."""
    # Python's own name for what it runs, until it has found the module that `python -m` asks for.
    if sys.argv[0] == "-m":
        gc.set_threshold(OBJECTS_MAX)


def end() -> None:
    """The program is loaded: what is there now stays to the end, and is looked through no more."""
    gc.freeze()
    gc.set_threshold(*USUAL)
