"""Who may ask: programs that know the key, or on this machine alone; web pages only of origins that are allowed."""

import hashlib
import hmac
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ....errors import ConfigError
from .problems import problem

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIN_KEY_CHARACTERS = 16
# They say nothing about any video.
_OPEN_PATHS = ("/healthz", "/docs", "/openapi.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may ask.

    Attributes:
        host: the address that the server listens on.
        api_key: must come with every request; None only on a loopback address.
        origins: of web pages that may ask, such as "https://app.example".
    """

    host: str = "127.0.0.1"
    api_key: str | None = None
    origins: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.api_key is None and self.host not in LOOPBACK:
            raise ConfigError(
                f"host must be a loopback address ({', '.join(LOOPBACK)}) without an API key, got {self.host}; "
                "set ISOFRAME_API_KEY (or --api-key) to serve others"
            )
        if self.api_key is not None and len(self.api_key) < MIN_KEY_CHARACTERS:
            raise ConfigError(
                f"api_key must have at least {MIN_KEY_CHARACTERS} characters, got {len(self.api_key)}; "
                "make one with: openssl rand -hex 32"
            )


class Guard:
    """ASGI middleware that refuses before anything of a request's body is read."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        """``access`` says who may ask ``app``."""
        self._app = app
        self._access = access
        self._key_digest = None if access.api_key is None else _digest(access.api_key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        refusal = self._refuse(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refuse(self, scope: Scope) -> ASGIApp | None:
        """The answer to somebody who may not ask."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        # A name that somebody else has point to this machine would let a web page be of the server's own origin.
        if self._key_digest is None and _host_name(host) not in LOOPBACK:
            return problem(403, f"without an API key the host must be one of {', '.join(LOOPBACK)}", "host")
        # Web pages may send forms to any address without asking first; they tell where they are from.
        if origin not in (None, f"{scope['scheme']}://{host}", *self._access.origins):
            return problem(403, "web pages of this origin may not ask; --cors-origin allows one", "origin")
        if self._key_digest is None or scope["path"] in _OPEN_PATHS:
            return None
        kind, _, key = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(_digest(key.strip()), self._key_digest):
            return None
        message = "the header must be Authorization: Bearer KEY with the server's API key"
        return problem(401, message, "authorization", headers={"WWW-Authenticate": "Bearer"})


def _digest(key: str) -> bytes:
    """A digest of a key: all have one length, so that comparing two takes equally long."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _host_name(host: str) -> str:
    """The host of an address without its port: "127.0.0.1" of "127.0.0.1:8000", "::1" of "[::1]:8000"."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
