"""What follows from the contract, and that Envoy takes it."""

from dataclasses import replace
from pathlib import Path

import pytest
from tradeloom.policy.v1 import policy_pb2

from libs.edge import config, contract, envoy, generate, routes
from libs.edge.contract import Rest
from libs.edge.target import RELEASE, TRUSTED_PROXIES, Target, embedded, kubernetes
from tests.libs.edge.stand import make_certificates

TARGET = embedded(tls_folder="tls", secrets_folder="edge", descriptors_file="tradeloom.binpb")


@pytest.mark.parametrize(
    "target",
    [embedded(tls_folder="", secrets_folder="", descriptors_file=""), kubernetes(release="shop", trusted_proxies=1)],
)
def test_envoy_takes_the_configuration_of_every_place(target: Target, tmp_path: Path) -> None:
    make_certificates(tmp_path, ("edge",))
    here = replace(
        target,
        tls_folder=str(tmp_path),
        descriptors_file=str(tmp_path / "tradeloom.binpb"),
        secrets_folder=str(tmp_path),
    )
    config.write(here, tmp_path / "envoy.json")

    assert envoy.validate(tmp_path / "envoy.json") == ""


@pytest.mark.parametrize("target", generate.targets(), ids=lambda target: target.name)
def test_envoy_takes_what_is_committed(target: Target, tmp_path: Path) -> None:
    make_certificates(tmp_path, ("edge",))
    committed = Path("gen/edge", f"envoy.{target.name}.yaml").read_text()
    here = (
        committed.replace(target.tls_folder, str(tmp_path))
        .replace(target.descriptors_file, str(Path("gen/edge", generate.DESCRIPTORS).resolve()))
        .replace(RELEASE, "shop")
        .replace(TRUSTED_PROXIES, "1")
        .replace(f"path: {target.secrets_folder}", f"path: {Path('gen/edge').resolve()}")
    )
    (tmp_path / "envoy.yaml").write_text(here)

    assert envoy.validate(tmp_path / "envoy.yaml") == ""


def test_a_method_without_side_effects_alone_is_sent_again_after_a_service_saw_it() -> None:
    for route in routes.edge_routes(TARGET):
        method = next((one for one in contract.methods() if one.path == route.get("name")), None)
        if method is not None:
            again = "unavailable" in route["route"]["retry_policy"]["retry_on"]
            assert again == method.read_only, method.path


def test_a_method_for_services_has_neither_a_grpc_nor_a_rest_route() -> None:
    named = {route.get("name") for route in routes.edge_routes(TARGET)}
    for method in contract.methods():
        assert (method.path in named) == method.routed


def test_every_method_but_the_public_ones_needs_a_token_on_every_path() -> None:
    found = 0
    for route in routes.edge_routes(TARGET):
        method = next((one for one in contract.methods() if one.path == route.get("name")), None)
        if method is not None:
            free = routes.JWT in route.get("typed_per_filter_config", {})
            assert free == (method.policy.access == policy_pb2.ACCESS_PUBLIC), method.path
            found += 1
    assert found >= len([method for method in contract.methods() if method.routed])


def test_streams_have_no_time_limit_and_uploads_a_long_one() -> None:
    for method in contract.methods():
        timeout = routes.way(TARGET, method)["route"]["timeout"]
        if method.server_streaming:
            assert timeout == "0s"
        else:
            assert timeout == ("900s" if method.client_streaming else "15s")


def test_a_silent_stream_lives_longer_than_two_heartbeats() -> None:
    assert TARGET.stream_idle_seconds > 2 * 10


@pytest.mark.parametrize(
    ("template", "regex"),
    [
        ("/orders", None),
        ("/orders/{order_id}", "/orders/[^/]+"),
        ("/orders/{order_id}/cancel", "/orders/[^/]+/cancel"),
        ("/files/{name=reports/*/**}", "/files/reports/[^/]+/.+"),
    ],
)
def test_a_rest_template_becomes_what_matches_its_paths(template: str, regex: str | None) -> None:
    assert Rest(verb="GET", template=template, body="").path_regex == regex


def test_every_port_of_the_earlier_system_is_listened_on_on_one_machine_and_none_in_a_cluster() -> None:
    earlier = {8001, *range(8011, 8024)}

    def ports(target: Target) -> set[int]:
        listeners = config.render(target)["static_resources"]["listeners"]
        return {listener["address"]["socket_address"]["port_value"] for listener in listeners}

    assert ports(TARGET) == {TARGET.listen_port, TARGET.probe_port} | earlier
    assert not ports(kubernetes()) & earlier


def test_an_alias_port_knows_only_its_own_service() -> None:
    clusters = {
        route["route"]["cluster"]
        for route in routes.alias_routes(TARGET, "orders")
        if "cluster" in route.get("route", {})
    }

    assert clusters == {"orders", "orders_probe", "web"}
