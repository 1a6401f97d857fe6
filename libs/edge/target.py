"""Where the mesh runs: what differs between the embedded stack and Kubernetes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from libs.tokens import KEYS_REFRESH_SECONDS
from libs.words import EDGE_PORT, TABLE, WORDS

LOOPBACK = "127.0.0.1"
LOOPBACK_ORIGINS = r"https?://(localhost|127\.0\.0\.1)(:[0-9]+)?"

# What Helm fills in: the chart passes the committed file through `tpl`.
RELEASE = "{{ .Release.Name }}"
TRUSTED_PROXIES = "{{ .Values.edge.trustedProxies }}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where one service listens."""

    host: str
    mesh_port: int
    probe_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One place to run in. Ports are chosen by whoever starts the edge; 0 is none."""

    name: str
    addresses: Mapping[str, Address]
    """By word; what is not here has no cluster and no routes. `auth` must be: it has the keys."""
    by_name: bool
    """Whether hosts are names to look up again and again, instead of addresses."""
    tls_folder: str
    """Holds ca.pem, edge.pem and edge.key, as `libs.mesh.certificates` says."""
    secrets_folder: str
    """Where the files of `libs.edge.secrets` lie, through which Envoy follows certificates that are renewed."""
    descriptors_file: str
    """The contract as written by `libs.edge.config.write`."""
    listen_host: str = LOOPBACK
    listen_port: int = EDGE_PORT
    admin_port: int = EDGE_PORT + 10_000
    """Envoy's own administration; always on loopback."""
    probe_host: str = LOOPBACK
    probe_port: int = EDGE_PORT + 20_000
    """Plain HTTP: /health, /live and /metrics, as for every service."""
    alias_ports: Mapping[str, Sequence[int]] = field(default_factory=dict)
    """By word: ports on loopback that answer that service's REST paths, /health and /docs.

    One without an address says on its ports that it is not there.
    """

    allowed_origin_regexes: tuple[str, ...] = (LOOPBACK_ORIGINS,)
    """Pages on these origins may call from a browser; the dashboard's own needs no mention."""
    trusted_proxies: int | str = 0
    """How many proxies in front append the address they were called from to x-forwarded-for, or where Helm says so.

    With too few every caller has the address of a proxy; with too many each says himself what his is.
    """
    connections_max: int = 4096
    connection_idle_seconds: float = 90.0
    """How long a connection may have no call under way: whoever says nothing takes somebody's place.

    Longer than the minute for which balancers usually keep theirs, so that these close first.
    """
    connection_idle_scarce_seconds: float = 2.0
    """What is left of it when nine in ten places are taken."""
    heap_bytes_max: int = 512 * 1024 * 1024
    """Above 95% of it new requests are refused, until some are done."""

    sign_in_burst: int = 120
    """Attempts to sign in or register that one address may make at once ..."""
    sign_in_per_second: int = 2
    """... and how many it gets back each second. The auth service counts failures more strictly."""
    requests_per_second: int = 20_000
    """Of all callers together, on each port of this one Envoy."""

    unary_timeout_seconds: float = 15.0
    import_timeout_seconds: float = 900.0
    """For the whole of a call that uploads a file."""
    request_idle_seconds: float = 30.0
    """How long either side of a unary call may send nothing, and how much longer than its time-out all of it may take."""
    stream_idle_seconds: float = 60.0
    """How long a stream may be silent; services send a heartbeat at most every 10 seconds."""
    reflection_seconds: float = 30.0
    """How long anybody may go on asking what the contract is; tools ask anew when they need more."""
    jwks_refresh_seconds: float = KEYS_REFRESH_SECONDS
    """How soon auth's keys are asked for again, as every service does."""
    jwks_kept_seconds: float = 3600.0
    """Keys of so long ago count at most, where auth does not answer: then reads must go on.

    So a key that auth withdrew may pass here for as long; no service takes its tokens.
    """


def embedded(
    *,
    tls_folder: str,
    secrets_folder: str,
    descriptors_file: str,
    addresses: Mapping[str, Address] | None = None,
    alias_ports: Mapping[str, Sequence[int]] | None = None,
    listen_host: str = LOOPBACK,
    listen_port: int = EDGE_PORT,
    admin_port: int = EDGE_PORT + 10_000,
    probe_port: int = EDGE_PORT + 20_000,
) -> Target:
    """Everything on one machine; ports may differ from the usual ones where those are taken."""
    usual = {
        word.name: Address(host=LOOPBACK, mesh_port=word.mesh_port, probe_port=word.probe_port)
        for word in WORDS.values()
    }
    return Target(
        name="embedded",
        addresses=usual if addresses is None else addresses,
        by_name=False,
        tls_folder=tls_folder,
        secrets_folder=secrets_folder,
        descriptors_file=descriptors_file,
        listen_host=listen_host,
        listen_port=listen_port,
        admin_port=admin_port,
        probe_port=probe_port,
        alias_ports={word.name: word.alias_ports for word in TABLE} if alias_ports is None else alias_ports,
    )


def kubernetes(*, release: str = RELEASE, trusted_proxies: int | str = TRUSTED_PROXIES) -> Target:
    """Behind the headless services `<release>-<word>`, which resolve to one address for each pod."""
    return Target(
        name="kubernetes",
        addresses={
            word.name: Address(host=f"{release}-{word.name}", mesh_port=word.mesh_port, probe_port=word.probe_port)
            for word in WORDS.values()
        },
        by_name=True,
        tls_folder="/etc/tradeloom/tls",
        secrets_folder="/etc/tradeloom/edge",
        descriptors_file="/etc/tradeloom/edge/tradeloom.binpb",
        listen_host="0.0.0.0",
        probe_host="0.0.0.0",
        allowed_origin_regexes=(),
        trusted_proxies=trusted_proxies,
    )
