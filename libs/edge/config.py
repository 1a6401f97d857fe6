"""The whole configuration of one Envoy, made from the contract and the place it runs in."""

import json
from pathlib import Path
from typing import Any

from libs.edge import contract, secrets
from libs.edge.clusters import clusters
from libs.edge.envoy import seconds, socket_address, typed
from libs.edge.listeners import listeners
from libs.edge.target import LOOPBACK, Target

OVERLOADED = 0.95
"""Of the heap: new requests are refused."""
SHRINKING = 0.90
"""Of the heap: unused memory is given back."""
SCARCE_FROM, SCARCE = 0.5, 0.9
"""Of the connections: between the two, those without a call under way are closed sooner and sooner."""
OVERLOAD_REFRESH_SECONDS = 0.25


def render(target: Target) -> dict[str, Any]:
    """Envoy's configuration for this place. It names files of the target, which need not exist yet."""
    return {
        "node": {"id": "edge", "cluster": "tradeloom"},
        "admin": {"address": socket_address(LOOPBACK, target.admin_port)},
        "overload_manager": overload(target),
        "static_resources": {"listeners": listeners(target), "clusters": clusters(target)},
    }


def write(target: Target, config: Path) -> None:
    """Writes the configuration and, where it says, the contract's descriptors and what follows certificates."""
    descriptors = Path(target.descriptors_file)
    descriptors.parent.mkdir(parents=True, exist_ok=True)
    descriptors.write_bytes(contract.descriptor_set())
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(json.dumps(render(target), indent=1) + "\n")
    for name, content in secrets.files(target).items():
        Path(target.secrets_folder, name).write_text(json.dumps(content, indent=1) + "\n")


def overload(target: Target) -> dict[str, Any]:
    heap = "envoy.resource_monitors.fixed_heap"
    connections = "envoy.resource_monitors.global_downstream_max_connections"

    def above(value: float) -> list[dict[str, Any]]:
        return [{"name": heap, "threshold": {"value": value}}]

    return {
        "refresh_interval": f"{OVERLOAD_REFRESH_SECONDS:g}s",
        "resource_monitors": [
            {
                "name": heap,
                "typed_config": typed(
                    "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                    max_heap_size_bytes=target.heap_bytes_max,
                ),
            },
            {
                "name": connections,
                "typed_config": typed(
                    "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=target.connections_max,
                ),
            },
        ],
        "actions": [
            {"name": "envoy.overload_actions.shrink_heap", "triggers": above(SHRINKING)},
            {"name": "envoy.overload_actions.stop_accepting_requests", "triggers": above(OVERLOADED)},
            {
                "name": "envoy.overload_actions.reduce_timeouts",
                "triggers": [
                    {
                        "name": connections,
                        "scaled": {"scaling_threshold": SCARCE_FROM, "saturation_threshold": SCARCE},
                    }
                ],
                "typed_config": typed(
                    "config.overload.v3.ScaleTimersOverloadActionConfig",
                    # No other timer: a stream is a call under way however quiet it is.
                    timer_scale_factors=[
                        {
                            "timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE",
                            "min_timeout": seconds(target.connection_idle_scarce_seconds),
                        }
                    ],
                ),
            },
        ],
    }
