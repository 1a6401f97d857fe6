"""Channels from one service to another: who must be there, how long to wait, what may be tried again."""

import json
from pathlib import Path

import grpc
from grpc import aio

from libs.mesh.contract import methods
from libs.mesh.tls import channel_credentials

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


def options(word: str) -> list[tuple[str, str | int]]:
    first, most = RECONNECT_BACKOFF_MILLISECONDS
    return [
        ("grpc.service_config", service_config(word)),
        ("grpc.enable_http_proxy", 0),
        # The certificate must be of the service asked for, wherever it listens.
        ("grpc.ssl_target_name_override", word),
        ("grpc.keepalive_time_ms", KEEPALIVE_MILLISECONDS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MILLISECONDS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ("grpc.initial_reconnect_backoff_ms", first),
        ("grpc.max_reconnect_backoff_ms", most),
    ]


def open_channel(address: str, word: str, *, tls_folder: Path, caller: str) -> aio.Channel:
    """A channel to the service of this word at host:port, under the caller's own certificate."""
    return aio.secure_channel(address, channel_credentials(tls_folder, caller), options=options(word))


def open_edge_channel(address: str) -> aio.Channel:
    """A channel through the edge, as people's programs have: plain on loopback."""
    return aio.insecure_channel(
        address,
        options=[
            ("grpc.enable_http_proxy", 0),
            ("grpc.keepalive_time_ms", KEEPALIVE_MILLISECONDS),
            ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        ],
    )


def is_away(error: grpc.RpcError) -> bool:
    """Whether the other side is only away for the moment."""
    return isinstance(error, aio.AioRpcError) and error.code() is grpc.StatusCode.UNAVAILABLE
