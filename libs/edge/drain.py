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
QUIET_SECONDS = 1.0
"""With no request for so long, those who still hold a connection have been told to leave it."""
REQUESTS = "http.edge.downstream_rq_active"


def main(admin_port: int, notice_seconds: float, drain_seconds: float) -> bool:
    """Whether all requests and streams were over in time."""
    ask(admin_port, "/healthcheck/fail", method="POST")
    time.sleep(notice_seconds)
    # From here on each answer asks its caller to take another connection.
    ask(admin_port, "/drain_listeners?graceful&skip_exit", method="POST")
    end = time.monotonic() + drain_seconds
    busy = time.monotonic()
    while (now := time.monotonic()) < end:
        if requests(admin_port) > 0:
            busy = now
        elif now - busy >= QUIET_SECONDS:
            return True
        time.sleep(POLL_SECONDS)
    return False


def requests(admin_port: int) -> int:
    """Answers and streams under way on the one port for everything."""
    for line in ask(admin_port, f"/stats?filter=^{REQUESTS}$").splitlines():
        name, _, value = line.partition(": ")
        if name == REQUESTS:
            return int(value)
    return 0


def ask(admin_port: int, path: str, method: str = "GET") -> str:
    # Never through a proxy: it is in this pod.
    opener = build_opener(ProxyHandler({}))
    request = Request(f"http://{LOOPBACK}:{admin_port}{path}", method=method)
    with opener.open(request, timeout=ANSWER_SECONDS) as answer:
        return answer.read().decode()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--notice-seconds", type=float, required=True)
    parser.add_argument("--drain-seconds", type=float, required=True)
    parser.add_argument("--admin-port", type=int, default=kubernetes().admin_port)
    given = parser.parse_args()
    main(given.admin_port, given.notice_seconds, given.drain_seconds)
