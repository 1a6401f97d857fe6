"""Makes a small machine of the namespaces it runs in, as root, and there runs `tradeloom` as nobody.

Its argument is a folder of nobody's. Prints what each command said, as one JSON object.
"""

import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

NOBODY = 65534
SIOCSIFFLAGS, IFF_UP = 0x8914, 1
SHARED_MEMORY = "64m"
COMMANDS = {
    "up": ("--detach",),
    "health": (),
    "psql": ("--tuples-only", "-c", "SHOW dynamic_shared_memory_type"),
    "demo": ("BTCUSDT", "0.25", "--order-type", "market"),
    "down": (),
}


def main() -> None:
    for which in ("all", "default", "lo"):
        switch = Path(f"/proc/sys/net/ipv6/conf/{which}/disable_ipv6")
        if switch.exists():  # else the kernel has none to begin with
            switch.write_text("1")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SHARED_MEMORY}", "tmpfs", "/dev/shm"], check=True)
    with socket.socket() as usual:
        fcntl.ioctl(usual, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
        usual.bind(("127.0.0.1", 8080))
        usual.listen()
        assert not ipv6_works(), "this machine still has IPv6"
        python = reachable_python(Path(sys.argv[1]))
        print(json.dumps({word: run(python, word, *arguments) for word, arguments in COMMANDS.items()}))


def reachable_python(home: Path) -> str:
    """The very Python that runs this, which may lie in a home that is closed to others."""
    place = home / "python"
    place.mkdir()
    subprocess.run(["mount", "--bind", sys.base_prefix, str(place)], check=True)
    os.environ["LD_LIBRARY_PATH"] = str(place / "lib")  # where it is built with a library, that is looked for at home
    return str(place / "bin" / f"python3.{sys.version_info.minor}")


def run(python: str, word: str, *arguments: str) -> str:
    command = [python, "-m", "libs.cli", word, *arguments]
    done = subprocess.run(
        command, user=NOBODY, group=NOBODY, extra_groups=[], capture_output=True, text=True, check=False
    )
    if done.returncode:
        logs = Path(os.environ["TRADELOOM_DATA_DIR"], "logs").glob("*.log")
        said = "\n".join(f"{file.name}: {file.read_text()[-1000:]}" for file in logs)
        sys.exit(f"{word} ended with {done.returncode}: {done.stdout}{done.stderr}{said}")
    return done.stdout


def ipv6_works() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
