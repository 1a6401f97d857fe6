"""Becomes another program that dies with its supervisor, optionally as an unprivileged user.

Runs as `python -I -S launch.py <options> -- <command>`: a fork in a threaded supervisor must not run Python, so this
happens in the child, after its exec. Needs nothing but the standard library and starts in about 15 ms.
"""

import argparse
import ctypes
import os
import signal
import sys

NOBODY = 65534
PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
EXIT_ORPHANED = 3
"""The supervisor was gone before this process could be bound to it."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True, help="the supervisor's pid")
    parser.add_argument("--death-signal", type=int, required=True, help="what the kernel sends when it dies")
    parser.add_argument("--identity", choices=("self", "userns", "nobody"), required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()

    if options.identity == "userns":
        enter_user_namespace()
    if options.identity == "nobody":
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    # After the change of identity: the kernel forgets the death signal there.
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, options.death_signal, 0, 0, 0)
    if os.getppid() != options.parent:
        sys.exit(EXIT_ORPHANED)
    # Python ignores these two, and an ignored signal stays ignored through exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    os.execv(options.command[0], options.command)  # noqa: S606 (this process becomes it)


def enter_user_namespace() -> None:
    """Be nobody in a namespace of our own; on disk the files stay the caller's."""
    user, group = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"unshare: {os.strerror(code)}")
    for name, line in (
        ("setgroups", "deny"),
        ("uid_map", f"{NOBODY} {user} 1"),
        ("gid_map", f"{NOBODY} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:  # noqa: PTH123 (pathlib costs 10 ms here)
            file.write(line)


if __name__ == "__main__":
    main()
