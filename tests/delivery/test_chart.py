"""The chart, rendered by Helm itself: what Kubernetes would be given."""

import importlib
import os
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate.utils
import pytest
import yaml
from pydantic import SecretStr

from libs.codegen import chart
from libs.edge import envoy
from libs.mesh.settings import ServiceSettings
from libs.stack.pki import spiffe_id
from libs.words import EDGE_PORT, WORDS
from tests.delivery.chart import (
    EXAMPLES,
    Manifest,
    container,
    environment,
    manifests,
    of_kind,
    rendered,
    usual,
    workloads,
)
from tests.libs.edge.stand import make_certificates

KUBERNETES = ("1.31", "1.37")
WITHOUT_SCHEMA = {"Certificate", "PodMonitor"}
MEBIBYTE = 1024 * 1024
NOT_OURS = {"PGSSLMODE", "PGSSLROOTCERT"}
"""Read by the driver of Postgres."""
IN_SECRETS = {
    "AUTH_SMTP_URL": "smtps://mailer:A1b2C3d4E5@mail.example.com",
    "AUTH_KEY_ENCRYPTION_KEYS": f"k1:{'A' * 43}=",
    "USERS_KEY_ENCRYPTION_KEYS": f"k1:{'A' * 43}=",
}
"""32 bytes in base64 stand for whatever else lies in a Secret."""


def example_named(name: str) -> list[Manifest]:
    return manifests(rendered(chart.CHART / "ci" / f"{name}.values.yaml"))


def settings_type(word: str) -> type[ServiceSettings]:
    return importlib.import_module(f"services.{word}.settings").Settings


def field_of(word: str, variable: str) -> str | None:
    """The setting that reads it."""
    for name in (variable.removeprefix(f"{word.upper()}_").lower(), variable.lower()):
        if name in settings_type(word).model_fields:
            return name
    return None


@pytest.mark.parametrize("example", [None, *EXAMPLES], ids=lambda path: path.name if path else "usual")
def test_helm_finds_nothing_wrong(example: Path | None) -> None:
    values = yaml.safe_load(example.read_text()) if example else None
    found = helm_python.lint(str(chart.CHART), values, strict=True)

    assert found["errors"] == []
    assert [message for message in found["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.name)
def test_the_rendered_examples_are_current(example: Path) -> None:
    assert chart.example(example).read_text() == chart.HEADER + chart.shortened(rendered(example))


@pytest.mark.parametrize("name", chart.FILES)
def test_the_charts_copies_are_what_the_contract_gives(name: str) -> None:
    assert (chart.CHART / "files" / name).read_bytes() == Path("gen/edge", name).read_bytes()


@pytest.fixture
def quick_schemas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each schema is read once, not for each manifest."""
    read = lru_cache(kubernetes_validate.utils.schema_contents)
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", read)


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.usefixtures("quick_schemas")
def test_kubernetes_knows_every_field(version: str) -> None:
    for example in [None, *EXAMPLES]:
        for manifest in manifests(rendered(example)):
            if manifest["kind"] not in WITHOUT_SCHEMA:
                kubernetes_validate.utils.validate(manifest, version, strict=True)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"services": {"orders": {"replica": 1}}}, "replica"),
        ({"services": {"Bad_Name": {"port": 8030}}}, "Bad_Name"),
        ({"services": {"alerts": {"replicas": 2}}}, "port"),
        ({"services": {"edge": {"port": 8030}}}, "edge"),
        ({"services": {"orders": {"env": {"quantity": "1"}}}}, "quantity"),
        ({"services": {"orders": {"env": {"ORDERS_ACCOUNTS_MAX": 5}}}}, "ORDERS_ACCOUNTS_MAX"),
        ({"services": {"orders": {"resources": {"limits": {"memory": "lots"}}}}}, "memory"),
        ({"edge": {"replicas": "two"}}, "replicas"),
        ({"edge": {"trustedProxies": -1}}, "trustedProxies"),
        ({"edge": {"trustedProxies": "1"}}, "trustedProxies"),
        ({"edge": {"service": {"externalTrafficPolicy": "Nearest"}}}, "externalTrafficPolicy"),
        ({"image": {"digest": "sha256:short"}}, "digest"),
        ({"environment": "staging"}, "environment"),
        ({"certificates": {"issuer": {"kind": "Authority"}}}, "kind"),
        ({"ingress": {}}, "ingress"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_wrong_value_is_refused_by_its_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(helm_python.HelmError, match=named):
        chart.render(values)


def test_every_object_of_the_schema_is_closed() -> None:
    def objects(schema: Any) -> Iterable[dict[str, Any]]:
        if isinstance(schema, dict):
            if "properties" in schema:
                yield schema
            for inner in schema.values():
                yield from objects(inner)

    found = list(objects(yaml.safe_load((chart.CHART / "values.schema.json").read_text())))

    assert len(found) > 10
    assert all(one["additionalProperties"] is False for one in found)


def test_a_new_word_is_one_line_of_values() -> None:
    found = manifests(chart.render({"services": {"alerts": {"port": 8020}}, "certificates": {"certManager": True}}))

    kinds = {"Deployment", "Service", "ServiceAccount", "PodDisruptionBudget", "NetworkPolicy", "Certificate"}
    assert {kind for kind in kinds if "alerts" in of_kind(kind, found)} == kinds
    ports = of_kind("Service", found)["alerts"]["spec"]["ports"]
    assert [port["port"] for port in ports] == [18020, 28020]


def test_a_release_name_too_long_for_the_names_made_from_it_is_refused() -> None:
    with helm_python.Chart.load(chart.CHART) as loaded, pytest.raises(helm_python.HelmError, match="40 characters"):
        loaded.render(values={}, name="t" * 41, namespace=chart.NAMESPACE)


def test_envoy_takes_what_its_config_map_holds(tmp_path: Path) -> None:
    make_certificates(tmp_path, ("edge",))
    found = of_kind("ConfigMap")["edge"]
    assert "{{" not in found["data"]["envoy.yaml"]
    (tmp_path / "tradeloom.binpb").write_bytes(Path("gen/edge/tradeloom.binpb").read_bytes())
    for name, text in found["data"].items():
        here = text.replace("/etc/tradeloom/edge", str(tmp_path)).replace("/etc/tradeloom/tls", str(tmp_path))
        (tmp_path / name).write_text(here)

    assert envoy.validate(tmp_path / "envoy.yaml") == ""


def test_the_edge_believes_as_many_proxies_as_it_is_told_of() -> None:
    def believed(values: dict[str, Any]) -> set[str]:
        text = of_kind("ConfigMap", manifests(chart.render(values)))["edge"]["data"]["envoy.yaml"]
        return set(re.findall(r"xff_num_trusted_hops: (.*)", text))

    assert believed({}) == {"'0'"}
    assert believed({"edge": {"trustedProxies": 2}}) == {"'2'"}


@pytest.mark.parametrize("kind", ["NodePort", "LoadBalancer"])
def test_no_node_puts_its_address_in_place_of_a_callers(kind: str) -> None:
    def policy(**service: str) -> str | None:
        found = manifests(chart.render({"edge": {"service": service}}))
        return of_kind("Service", found)["edge"]["spec"].get("externalTrafficPolicy")

    assert policy(type=kind) == "Local"
    assert policy(type=kind, externalTrafficPolicy="Cluster") == "Cluster"
    # Kubernetes refuses it where nobody comes from outside.
    assert policy(type="ClusterIP") is None


def test_the_edges_config_map_is_well_below_what_kubernetes_takes() -> None:
    found = of_kind("ConfigMap")["edge"]

    assert sum(map(len, [*found["data"].values(), *found["binaryData"].values()])) < MEBIBYTE * 0.75


def test_the_edge_leads_to_the_services_of_this_release() -> None:
    text = of_kind("ConfigMap")["edge"]["data"]["envoy.yaml"]
    services = of_kind("Service")

    for word in WORDS.values():
        name = f"{chart.RELEASE}-{word.name}"
        assert re.search(rf"address: '{name}'\n\s+port_value: {word.mesh_port}\n", text)
        assert services[word.name]["metadata"]["name"] == name
        assert services[word.name]["spec"]["clusterIP"] == "None"
        ports = {port["name"]: port["port"] for port in services[word.name]["spec"]["ports"]}
        assert ports == {"mesh": word.mesh_port, "probe": word.probe_port}
    assert services["edge"]["spec"]["ports"][0]["port"] == EDGE_PORT


@pytest.mark.parametrize("word", WORDS)
def test_a_service_reads_every_setting_it_is_given_and_is_given_all_it_needs(
    word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = environment(of_kind("Deployment")[word])
    for name in set(given) - NOT_OURS:
        field = field_of(word, name)
        assert field, f"nothing in {word} reads {name}"
        secret = settings_type(word).model_fields[field].annotation is SecretStr
        assert not secret or "value" not in given[name], f"{name} is a secret"
    for name in list(os.environ):
        if field_of(word, name):
            monkeypatch.delenv(name)
    for name, variable in given.items():
        monkeypatch.setenv(name, variable.get("value", IN_SECRETS.get(name, "A" * 43 + "=")))

    settings = settings_type(word)()  # type: ignore[call-arg]

    assert (settings.mesh_port, settings.probe_port) == (WORDS[word].mesh_port, WORDS[word].probe_port)
    assert settings.environment.value == "production"
    assert settings.listen_host == "0.0.0.0"
    assert settings.auth_service_url == f"{chart.RELEASE}-auth:{WORDS['auth'].mesh_port}"
    assert container(of_kind("Deployment")[word])["command"] == ["python", "-m", f"services.{word}"]


@pytest.mark.parametrize("word", [*WORDS, "edge"])
def test_probes_ask_where_the_service_answers(word: str) -> None:
    only = container(of_kind("Deployment")[word])
    ports = {port["name"]: port["containerPort"] for port in only["ports"]}

    assert ports["probe"] == (WORDS[word].probe_port if word in WORDS else EDGE_PORT + 20_000)
    assert only["startupProbe"]["httpGet"] == {"path": "/live", "port": "probe"}
    assert only["livenessProbe"]["httpGet"] == {"path": "/live", "port": "probe"}
    assert only["readinessProbe"]["httpGet"] == {"path": "/health", "port": "probe"}


@pytest.mark.parametrize("word", WORDS)
def test_a_service_may_drain_before_it_is_killed(word: str) -> None:
    deployment = of_kind("Deployment")[word]
    given = environment(deployment)
    drains = float(given["DRAIN_NOTICE_SECONDS"]["value"]) + float(given["DRAIN_SECONDS"]["value"])

    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= drains + 10
    assert deployment["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_edge_drains_before_envoy_is_told_to_stop() -> None:
    edge = of_kind("Deployment")["edge"]["spec"]["template"]["spec"]
    command = edge["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    seconds = [int(word.partition("=")[2]) for word in command if "=" in word]

    assert command[:3] == ["python", "-m", "libs.edge.drain"]
    assert edge["terminationGracePeriodSeconds"] >= sum(seconds) + 10


@pytest.mark.parametrize("example", [None, *EXAMPLES], ids=lambda path: path.name if path else "usual")
def test_no_container_may_more_than_it_must(example: Path | None) -> None:
    found = workloads(manifests(rendered(example)))
    assert len(found) == len(WORDS) + 2
    for workload in found:
        assert_confined(workload)


def assert_confined(workload: Manifest) -> None:
    pod = workload["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    only = container(workload)
    assert only["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert only["resources"]["requests"].keys() == {"cpu", "memory"}
    assert only["resources"]["limits"]["memory"]


def test_each_part_has_an_account_of_its_own_with_no_way_to_kubernetes() -> None:
    accounts = of_kind("ServiceAccount")

    assert accounts.keys() == {*WORDS, "edge", "migrations"}
    for name, workload in (of_kind("Deployment") | of_kind("Job")).items():
        used = workload["spec"]["template"]["spec"]["serviceAccountName"]
        assert used == accounts[name]["metadata"]["name"] == f"{chart.RELEASE}-{name}"
        assert accounts[name]["automountServiceAccountToken"] is False
    assert not [one["kind"] for one in usual() if one["kind"].endswith(("Role", "RoleBinding"))]


@pytest.mark.parametrize("example", [None, *EXAMPLES], ids=lambda path: path.name if path else "usual")
def test_no_secret_is_rendered(example: Path | None) -> None:
    found = manifests(rendered(example))

    assert not of_kind("Secret", found)
    for workload in workloads(found):
        for variable in container(workload).get("env", []):
            assert not re.search(r"PASSWORD|_KEY|SECRET|TOKEN|DATABASE_URL|REDIS_URL", variable["name"]) or (
                set(variable["valueFrom"]) == {"secretKeyRef"}
            )
            assert not re.search(r"://[^/]*@", variable.get("value", ""))


def test_the_migrations_run_before_anything_is_changed() -> None:
    job = of_kind("Job")["migrations"]
    annotations = job["metadata"]["annotations"]
    assert annotations["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert container(job)["command"] == ["python", "-m", "migrations", "all", "upgrade", "head"]
    url = environment(job)["MIGRATIONS_DATABASE_URL"]["valueFrom"]["secretKeyRef"]
    assert url == {"name": f"{chart.RELEASE}-migrations", "key": "MIGRATIONS_DATABASE_URL"}

    # Hooks come before all else, so what the Job needs is one too, and comes before it.
    for kind in ("ServiceAccount", "NetworkPolicy"):
        before = of_kind(kind)["migrations"]["metadata"]["annotations"]
        assert before["helm.sh/hook"] == annotations["helm.sh/hook"]
        assert int(before["helm.sh/hook-weight"]) < int(annotations["helm.sh/hook-weight"])
    assert not [volume for volume in job["spec"]["template"]["spec"]["volumes"] if "configMap" in volume]


def test_cert_manager_makes_the_very_certificates_that_pods_mount() -> None:
    found = example_named("managed")
    certificates = of_kind("Certificate", found)

    assert certificates.keys() == {*WORDS, "edge"} - {"web"}
    for word, certificate in certificates.items():
        assert certificate["spec"]["uris"] == [spiffe_id(word)]
        assert word in certificate["spec"]["dnsNames"]
        assert {"server auth", "client auth"} <= set(certificate["spec"]["usages"])
        pod = of_kind("Deployment", found)[word]["spec"]["template"]["spec"]
        (mounted,) = [volume["secret"] for volume in pod["volumes"] if volume["name"] == "tls"]
        assert mounted["secretName"] == certificate["spec"]["secretName"]
        assert {item["path"] for item in mounted["items"]} == {"ca.pem", f"{word}.pem", f"{word}.key"}
        (mount,) = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "tls"]
        assert mount["mountPath"] == "/etc/tradeloom/tls"
    assert not of_kind("Certificate")


def test_the_mesh_is_reached_by_the_edge_and_the_mesh_alone() -> None:
    policies = of_kind("NetworkPolicy")
    deployments = of_kind("Deployment")

    for word in WORDS:
        reached = callers(policies[word], "mesh", deployments)
        assert reached == ({"edge"} if word == "web" else {"edge", *WORDS} - {"web"})
        assert callers(policies[word], "probe", deployments) == {"edge"}
        assert policies[word]["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert "from" not in policies["edge"]["spec"]["ingress"][0], "everybody may call the edge"
    assert "ingress" not in policies["migrations"]["spec"]


def callers(policy: Manifest, port: str, deployments: dict[str, Manifest]) -> set[str]:
    """The Deployments whose pods a policy lets reach a port."""
    found: set[str] = set()
    for rule in policy["spec"]["ingress"]:
        if port in [one["port"] for one in rule["ports"]]:
            for peer in rule["from"]:
                for name, deployment in deployments.items():
                    if selects(peer["podSelector"], deployment["spec"]["template"]["metadata"]["labels"]):
                        found.add(name)
    return found


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    same = all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())
    return same and all(labels.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", []))


def test_only_what_needs_them_reaches_postgres_and_redis() -> None:
    for word, policy in of_kind("NetworkPolicy").items():
        ports = {port["port"] for rule in policy["spec"].get("egress") or [] for port in rule.get("ports", [])}
        assert (5432 in ports) == (word not in ("web", "edge")), word
        assert (6379 in ports) == (word not in ("web", "edge", "migrations")), word


def test_selectors_find_their_own_pods_and_no_others() -> None:
    deployments = of_kind("Deployment")
    for kind in ("Service", "PodDisruptionBudget", "Deployment"):
        for name, manifest in of_kind(kind).items():
            selector = manifest["spec"]["selector"]
            wanted = selector if kind == "Service" else selector["matchLabels"]
            labels = {word: one["spec"]["template"]["metadata"]["labels"] for word, one in deployments.items()}
            assert [word for word in labels if wanted.items() <= labels[word].items()] == [name]


def test_metrics_are_announced_only_where_asked_for_and_then_of_every_pod() -> None:
    assert not of_kind("PodMonitor")
    found = example_named("managed")
    assert of_kind("Service", found)["edge"]["spec"]["type"] == "LoadBalancer"
    (monitor,) = of_kind("PodMonitor", found).values()
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]

    assert endpoint["path"] == "/metrics"
    for deployment in of_kind("Deployment", found).values():
        assert selects(monitor["spec"]["selector"], deployment["spec"]["template"]["metadata"]["labels"])
        assert endpoint["port"] in [port["name"] for port in container(deployment)["ports"]]


def test_nobody_outside_reaches_the_edges_metrics() -> None:
    for found in (usual(), example_named("managed")):
        assert [port["name"] for port in of_kind("Service", found)["edge"]["spec"]["ports"]] == ["edge"]


def test_without_values_there_are_two_of_everything() -> None:
    assert {one["spec"]["replicas"] for one in of_kind("Deployment").values()} == {2}
    assert of_kind("PodDisruptionBudget").keys() == {*WORDS, "edge"}


def test_the_image_is_the_codes_version() -> None:
    version = re.search(r'(?m)^version = "(.+)"', Path("pyproject.toml").read_text())
    assert version
    assert {container(one)["image"] for one in workloads(usual())} == {f"tradeloom:{version[1]}"}
    assert {container(one)["image"].partition("@")[2][:7] for one in workloads(example_named("managed"))} == {"sha256:"}
