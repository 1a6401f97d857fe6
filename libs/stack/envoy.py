"""Envoy, the one door: its configuration is made from the contract for the ports of this run."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from libs.stack.folder import DataFolder
from libs.stack.ports import HOST
from libs.stack.probes import http_get, http_ok
from libs.stack.supervisor import Process
from libs.words import TABLE, WORDS

STOP_SECONDS = 5.0


async def envoy_process(folder: DataFolder, ports: Mapping[str, int]) -> Process:
    """Writes `envoy.json`, off the event loop: reading the whole contract takes a moment."""
    await asyncio.to_thread(write_configuration, folder, ports)
    # Late: it brings the whole contract with it, which only the supervisor needs.
    from libs.edge.envoy import command

    return Process(
        name="envoy",
        command=command(folder.envoy),
        ports={"edge": ports["edge"], "admin": ports["edge.admin"]},
        ready=lambda: http_ok(ports["edge.admin"], "/ready"),
        folder=Path("/"),
        stop_seconds=STOP_SECONDS,
    )


async def edge_reaches(admin_port: int, words: Sequence[str]) -> bool:
    """Whether Envoy's own health checks have found every one of these services."""
    pattern = f"^cluster\\.({'|'.join(words)})\\.membership_healthy$"
    status, answer = await http_get(admin_port, f"/stats?filter={quote(pattern)}")
    healthy = [line for line in answer.splitlines() if ".membership_healthy: 1" in line]
    return status == 200 and len(healthy) == len(words)


def write_configuration(folder: DataFolder, ports: Mapping[str, int]) -> None:
    from libs.edge import config
    from libs.edge.target import Address, embedded

    target = embedded(
        tls_folder=str(folder.tls),
        secrets_folder=str(folder.edge),
        descriptors_file=str(folder.path / "contract.binpb"),
        addresses={
            word: Address(host=HOST, mesh_port=ports[f"{word}.mesh"], probe_port=ports[f"{word}.probe"])
            for word in WORDS
        },
        alias_ports={
            word.name: [ports[use] for use in (f"{word.name}.alias", f"{word.name}.also") if use in ports]
            for word in TABLE
        },
        listen_port=ports["edge"],
        admin_port=ports["edge.admin"],
        probe_port=ports["edge.probe"],
    )
    config.write(target, folder.envoy)
