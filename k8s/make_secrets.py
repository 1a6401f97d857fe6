"""Makes every Secret of a trial anew and writes them to stdout, where only kubectl should read them.

.venv/bin/python k8s/make_secrets.py | kubectl --namespace tradeloom create -f -
"""

import base64
import secrets
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from libs.stack.pki import make_certificates
from libs.stack.valkey import OPERATOR, access_list

RELEASE = "tradeloom"
VALUES = Path(__file__).parents[1] / "helm" / "values.yaml"
OWNER = "tradeloom"
SUPERUSER = "postgres"
DATABASE = "trading"
ADMIN_EMAIL = "admin@tradeloom.local"
ENDS = ("rpc", "worker")
"""Each service's roles in Postgres."""
DATA_AUTHORITY = "/etc/tradeloom/data/ca.crt"
"""Where the chart puts it."""


def main() -> None:
    sys.stdout.write(yaml.safe_dump_all(trial_secrets(), sort_keys=False))


def trial_secrets() -> list[dict[str, Any]]:
    """Of Postgres, Redis, the migrations, the edge and every service in the chart's values."""
    values = yaml.safe_load(VALUES.read_text())
    services = {word: {**values["defaults"], **own} for word, own in values["services"].items()}
    words = [word for word, service in services.items() if service["mesh"]]
    roles = {role: new_password() for role in [SUPERUSER, OWNER, *(f"{word}_{end}" for word in words for end in ENDS)]}
    users = {user: new_password() for user in [OPERATOR, *words]}

    mesh = certificates([*words, "edge"])
    data = certificates(["postgres", "redis"])
    found = [
        secret("postgres-roles", roles),
        secret("postgres-tls", data["postgres"]),
        secret("redis-users", {"users.acl": access_list(users)}),
        secret("redis-tls", data["redis"]),
        secret(f"{RELEASE}-data-authority", {"ca.crt": data["postgres"]["ca.crt"]}),
        secret(f"{RELEASE}-migrations", {"MIGRATIONS_DATABASE_URL": database_url(OWNER, roles)}),
    ]
    found += [secret(f"{RELEASE}-{word}-tls", files) for word, files in mesh.items()]
    for word in words:
        settings = {
            "DATABASE_URL": database_url(f"{word}_rpc", roles),
            "WORKER_DATABASE_URL": database_url(f"{word}_worker", roles),
            "REDIS_URL": f"rediss://{word}:{users[word]}@redis:6379?ssl_ca_certs={DATA_AUTHORITY}",
            "AUTH_KEY_ENCRYPTION_KEYS": new_entry(),
            "USERS_KEY_ENCRYPTION_KEYS": new_entry(),
            "AUTH_ADMIN_EMAIL": ADMIN_EMAIL,
            "AUTH_ADMIN_PASSWORD": new_password(),
        }
        names = services[word]["secretEnv"]
        names += [name for name in services[word]["optionalSecretEnv"] if name in settings]
        found.append(secret(f"{RELEASE}-{word}", {name: settings[name] for name in names}))
    return found


def database_url(role: str, passwords: Mapping[str, str]) -> str:
    """The chart says how the server must prove who it is."""
    return f"postgresql://{role}:{passwords[role]}@postgres:5432/{DATABASE}"


def certificates(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Leaves of a new authority, whose key is forgotten: files by name, called as cert-manager calls them."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        make_certificates(made, made / "authority.key", names)
        return {
            name: {
                "ca.crt": (made / "ca.pem").read_text(),
                "tls.crt": (made / f"{name}.pem").read_text(),
                "tls.key": (made / f"{name}.key").read_text(),
            }
            for name in names
        }


def secret(name: str, texts: Mapping[str, str]) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": dict(texts)}


def new_entry() -> str:
    """A key-encryption key and what it is called."""
    return f"first:{base64.b64encode(secrets.token_bytes(32)).decode()}"


def new_password() -> str:
    return secrets.token_hex(24)


if __name__ == "__main__":
    main()
