"""A server on a socket."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ....errors import ConfigError, InputError

# Of a connection on which no request begins, or one begins and its headers do not end.
_IDLE_SECONDS = 15.0
# For answers under way when the server is told to stop.
_GRACE_SECONDS = 5
_BACKLOG = 128
_MAX_PORT = 65535


class ImpatientProtocol(H11Protocol):
    """Closes connections on which nothing is asked; uvicorn waits for headers for ever."""

    def connection_made(self, transport: Any) -> None:
        """A client connects."""
        super().connection_made(transport)
        self._seen: object = None
        self._timer = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is self._seen:
            self.transport.close()
            return
        self._seen = self.cycle if is_idle else self
        self._timer = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._look)


def bind(host: str, port: int) -> socket.socket:
    """A socket on ``port``; 0 takes any free one.

    Raises:
        ConfigError: there is no such port.
        InputError: the address cannot be had.
    """
    if not 0 <= port <= _MAX_PORT:
        raise ConfigError(f"--port must be from 0 to {_MAX_PORT}, got {port}")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot listen on {host} port {port}: {reason}; choose another --port or --host"
        ) from error


def address(listener: socket.socket) -> str:
    """The URL of the server."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(app: ASGIApp, *, on_start: Callable[[], None], on_stop: Callable[[], None]) -> uvicorn.Server:
    """A server; call ``run(sockets=[...])``, and set ``should_exit`` to stop it from another thread.

    Args:
        app: to be served.
        on_start: called when it can be reached.
        on_stop: called before it waits for answers that are under way.
    """
    config = uvicorn.Config(
        app,
        http=ImpatientProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return _Server(config, on_start, on_stop)


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, on_start: Callable[[], None], on_stop: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._on_start, self._on_stop = on_start, on_stop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_stop()
        await super().shutdown(sockets)
