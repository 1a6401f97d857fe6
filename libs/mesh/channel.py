"""Channels from one service to another: who must be there, how long to wait, what may be tried again."""

import json
from pathlib import Path

from grpc import aio

from libs.mesh.carrying import interceptors
from libs.mesh.certificates import Files
from libs.mesh.contract import methods
from libs.mesh.renewing import RenewingChannel
from libs.mesh.tls import Identity, channel_credentials

UNARY_DEADLINE_SECONDS = 10.0
KEEPALIVE_MILLISECONDS = 20_000
KEEPALIVE_TIMEOUT_MILLISECONDS = 5_000
MESSAGE_BYTES_MAX = 4 * 1024 * 1024
RECONNECT_BACKOFF_MILLISECONDS = (100, 2_000)
RETRY = {
    "maxAttempts": 4,
    "initialBackoff": "0.05s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def service_config(word: str) -> str:
    """Calls spread over all addresses; unary ones have a deadline; only those that change nothing are tried again."""
    configs = []
    for method in methods(word).values():
        service, name = method.path[1:].split("/")
        config: dict[str, object] = {"name": [{"service": service, "method": name}]}
        if not method.server_streams and not method.client_streams:
            config["timeout"] = f"{UNARY_DEADLINE_SECONDS:g}s"
        if method.reads_only and not method.server_streams:
            config["retryPolicy"] = RETRY
        configs.append(config)
    return json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "methodConfig": configs})


def keepalive(
    milliseconds: int = KEEPALIVE_MILLISECONDS, timeout_milliseconds: int = KEEPALIVE_TIMEOUT_MILLISECONDS
) -> list[tuple[str, int]]:
    """A peer that was silent for so long is asked whether it lives; its calls end when it does not answer in time."""
    return [
        ("grpc.keepalive_time_ms", milliseconds),
        ("grpc.keepalive_timeout_ms", timeout_milliseconds),
        ("grpc.keepalive_permit_without_calls", 1),
        # After two pings gRPC by itself asks no more until it has something to send: who only reads would never know.
        ("grpc.http2.max_pings_without_data", 0),
        # Nor does it ask again while an answer is due to a ping of its flow control, and it would wait 60 s for that.
        ("grpc.http2.ping_timeout_ms", timeout_milliseconds),
    ]


def options(word: str, alive: list[tuple[str, int]]) -> list[tuple[str, str | int]]:
    first, most = RECONNECT_BACKOFF_MILLISECONDS
    return [
        ("grpc.service_config", service_config(word)),
        ("grpc.enable_http_proxy", 0),
        # The certificate must be of the service asked for, wherever it listens.
        ("grpc.ssl_target_name_override", word),
        *alive,
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.initial_reconnect_backoff_ms", first),
        ("grpc.max_reconnect_backoff_ms", most),
    ]


def open_channel(
    address: str,
    word: str,
    *,
    tls_folder: Path,
    caller: str,
    keepalive_milliseconds: int = KEEPALIVE_MILLISECONDS,
    keepalive_timeout_milliseconds: int = KEEPALIVE_TIMEOUT_MILLISECONDS,
) -> aio.Channel:
    """A channel to the service of this word at host:port, under the caller's own certificate, also once it is renewed."""
    chosen = options(word, keepalive(keepalive_milliseconds, keepalive_timeout_milliseconds))

    def connect(used: Files) -> aio.Channel:
        return aio.secure_channel(address, channel_credentials(used), options=chosen, interceptors=interceptors())

    return RenewingChannel(Identity(tls_folder, caller), connect)


def open_edge_channel(address: str) -> aio.Channel:
    """A channel through the edge, as people's programs have: plain on loopback."""
    return aio.insecure_channel(
        address,
        options=[
            ("grpc.enable_http_proxy", 0),
            *keepalive(),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ],
    )
