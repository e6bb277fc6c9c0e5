"""All channel policy: sizes, keep-alive, reconnection, user agent, security, and how long calls may take."""

from __future__ import annotations

import platform

import grpc
import grpc.aio

from argosy._config import Config, Tls
from argosy._version import __version__

MAX_MESSAGE_BYTES = 64 << 20
# The servers allow a ping every 5 s; C-core closes the connection of a client that pings faster (too_many_pings).
KEEPALIVE_TIME_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
RECONNECT_FIRST_MS = 100
RECONNECT_MAX_MS = 1_000
USER_AGENT = f"argosy-python/{__version__} python/{platform.python_version()}"

DEFAULT_TIMEOUTS = {
    "tokenization": 60.0,
    "embeddings": 120.0,
    "adapters": 60.0,
    "generation": 600.0,
    # Runs have a budget of their own, at most an hour.
    "agents": 3_660.0,
}
"""Seconds until the deadline of a call, by area, where neither the client nor the call says otherwise."""

OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_FIRST_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_MAX_MS),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.primary_user_agent", USER_AGENT),
)


def open_channel(config: Config) -> grpc.Channel:
    """A channel for threads. It connects with the first call."""
    if config.tls is False:
        return grpc.insecure_channel(config.address, OPTIONS)
    return grpc.secure_channel(config.address, _credentials(config.tls), OPTIONS)


def open_aio_channel(config: Config) -> grpc.aio.Channel:
    """A channel for the running event loop. It connects with the first call."""
    if config.tls is False:
        return grpc.aio.insecure_channel(config.address, OPTIONS)
    return grpc.aio.secure_channel(config.address, _credentials(config.tls), OPTIONS)


def _credentials(tls: Tls) -> grpc.ChannelCredentials:
    if isinstance(tls, bool):
        return grpc.ssl_channel_credentials()
    return grpc.ssl_channel_credentials(tls if isinstance(tls, bytes) else tls.read_bytes())
