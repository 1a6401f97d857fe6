"""How a service of ours is started: its process and its environment, word by word."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from libs.stack.credentials import ADMIN_EMAIL, SEALING, Credentials, rpc_role, worker_role
from libs.stack.errors import StackError
from libs.stack.folder import DataFolder
from libs.stack.ports import HOST
from libs.stack.probes import http_ok
from libs.stack.supervisor import Process
from libs.stack.urls import as_user
from libs.words import WORDS

DRAIN_SECONDS = 5.0
STOP_SECONDS = 10.0
"""Draining, and closing what is open."""

EARLIER_NAMES = {
    "auth": "AUTH_SERVICE_URL",
    "users": "USER_SERVICE_URL",
    "billing": "BILLING_SERVICE_URL",
    "algo": "ALGO_ENGINE_URL",
    "orders": "ORDER_ROUTER_URL",
    "marketdata": "MARKET_DATA_URL",
}
"""Settings of the earlier system that mean the same; the others are called `<WORD>_SERVICE_URL`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all services of one run share."""

    folder: DataFolder
    credentials: Credentials
    ports: Mapping[str, int]
    words: Sequence[str]
    owner_url: str
    redis_urls: Mapping[str, str]
    """By word."""


def installed_words(only: Sequence[str] = ()) -> list[str]:
    """The words whose service is there, or those of them that were asked for."""
    unknown = [word for word in only if word not in WORDS]
    if unknown:
        raise StackError(f"no service is called {', '.join(unknown)}; there are {', '.join(WORDS)}")
    spec = find_spec("services")
    roots = [Path(root) for root in (spec.submodule_search_locations or ())] if spec else []
    return [
        word
        for word in WORDS
        if (not only or word in only) and any((root / word / "__main__.py").exists() for root in roots)
    ]


def service_process(word: str, around: Surroundings) -> Process:
    probe_port = around.ports[f"{word}.probe"]
    return Process(
        name=word,
        # -P: a folder called `services` where the command was given is not ours.
        command=[sys.executable, "-P", "-m", f"services.{word}"],
        environment=service_environment(word, around),
        ports={"mesh": around.ports[f"{word}.mesh"], "probe": probe_port},
        ready=lambda: http_ok(probe_port),
        stop_seconds=STOP_SECONDS,
    )


def service_environment(word: str, around: Surroundings) -> dict[str, str]:
    environment = {
        "ENVIRONMENT": os.environ.get("ENVIRONMENT", "development"),
        "LISTEN_HOST": HOST,
        "TLS_FOLDER": str(around.folder.tls),
        "MESH_PORT": str(around.ports[f"{word}.mesh"]),
        "PROBE_PORT": str(around.ports[f"{word}.probe"]),
        "DRAIN_SECONDS": f"{DRAIN_SECONDS:g}",
        "LOG_FORMAT": "console",
    }
    if not WORDS[word].has_contract:
        return environment  # it asks nobody, so it is told no secret
    passwords = around.credentials
    environment |= {
        "DATABASE_URL": as_user(around.owner_url, rpc_role(word), passwords.postgres(rpc_role(word))),
        "WORKER_DATABASE_URL": as_user(around.owner_url, worker_role(word), passwords.postgres(worker_role(word))),
        "REDIS_URL": around.redis_urls[word],
    }
    for other in around.words:
        name = EARLIER_NAMES.get(other, f"{other.upper()}_SERVICE_URL")
        environment[name] = f"{HOST}:{around.ports[f'{other}.mesh']}"
    if word == "auth":
        environment |= {
            "AUTH_ADMIN_EMAIL": ADMIN_EMAIL,
            "AUTH_ADMIN_PASSWORD": passwords["auth.admin"],
            "AUTH_MAIL_FOLDER": str(around.folder.mails),
        }
    if word in ("auth", "billing"):
        # For mails' links, and for the way back from Stripe.
        environment["PUBLIC_URL"] = os.environ.get("PUBLIC_URL", f"http://localhost:{around.ports['edge']}")
    if word in SEALING:
        # A file, so that its keys can be rotated while it runs.
        environment[f"{word.upper()}_KEY_ENCRYPTION_KEYS_FILE"] = str(passwords.keys_file(word))
    if word == "feeds":
        environment["FEEDS_SIMULATED"] = os.environ.get("FEEDS_SIMULATED", "1")
        environment["FEEDS_REPLAY_FOLDER"] = os.environ.get("FEEDS_REPLAY_FOLDER", str(around.folder.replays))
    return environment
