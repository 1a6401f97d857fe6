"""Asks the Envoy of this pod to finish, and waits until it has: `python -m libs.edge.drain`.

Run before Envoy is told to stop, for then it leaves at once. First its health says no, so that balancers look away;
then its callers are asked to go elsewhere; the rest, such as streams that nobody ends, is cut at the end and resumed
by cursor through another edge.
"""

import argparse
import time
from urllib.request import ProxyHandler, Request, build_opener

from libs.edge.target import LOOPBACK, kubernetes

ANSWER_SECONDS = 2.0
POLL_SECONDS = 0.25
CONNECTIONS = "http.edge.downstream_cx_active"


def main(admin_port: int, notice_seconds: float, drain_seconds: float) -> bool:
    """Whether all connections were closed in time."""
    ask(admin_port, "/healthcheck/fail", method="POST")
    time.sleep(notice_seconds)
    ask(admin_port, "/drain_listeners?graceful&skip_exit", method="POST")
    until = time.monotonic() + drain_seconds
    while connections(admin_port) > 0:
        if time.monotonic() > until:
            return False
        time.sleep(POLL_SECONDS)
    return True


def connections(admin_port: int) -> int:
    """Of callers, on the one port for everything."""
    for line in ask(admin_port, f"/stats?filter=^{CONNECTIONS}$").splitlines():
        name, _, value = line.partition(": ")
        if name == CONNECTIONS:
            return int(value)
    return 0


def ask(admin_port: int, path: str, method: str = "GET") -> str:
    # Never through a proxy: it is in this pod.
    opener = build_opener(ProxyHandler({}))
    request = Request(f"http://{LOOPBACK}:{admin_port}{path}", method=method)  # noqa: S310 (the scheme is ours)
    with opener.open(request, timeout=ANSWER_SECONDS) as answer:
        return answer.read().decode()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--notice-seconds", type=float, required=True)
    parser.add_argument("--drain-seconds", type=float, required=True)
    parser.add_argument("--admin-port", type=int, default=kubernetes().admin_port)
    given = parser.parse_args()
    main(given.admin_port, given.notice_seconds, given.drain_seconds)
