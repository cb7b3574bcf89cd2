"""Who may ask: programs that know the key, or on this machine alone; web pages only of origins that are allowed."""

import hashlib
import hmac
import ipaddress
import socket
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ....errors import ConfigError
from .problems import problem

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIN_KEY_CHARACTERS = 16
# They say nothing about any video.
_OPEN_PATHS = ("/healthz", "/docs", "/openapi.json")
# Where a link on another page may lead a browser's window: what is there changes nothing.
_PAGES = ("/", "/docs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Who may ask.

    Attributes:
        host: the address that the server listens on.
        api_key: must come with every request; None only on a loopback address, or with ``has_login``.
        origins: of web pages that may ask, such as "https://app.example"; also further addresses of the server itself. What
            is added later counts from then on.
        has_login: what is served asks for a password by itself.
    """

    host: str = "127.0.0.1"
    api_key: str | None = None
    origins: Collection[str] = ()
    has_login: bool = False

    def __post_init__(self) -> None:
        if self.api_key is None and not self.has_login and self.host not in LOOPBACK:
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
        host = headers.get("host", "")
        # A name that somebody else has point to this machine would let a web page be of the server's own origin.
        if self._key_digest is None and not self._is_own_name(_host_name(host)):
            return problem(403, f"the host must be one of {', '.join(self._own_names())}", "host")
        # Web pages may send forms to any address without asking first; they tell where they are from.
        own = (f"{scope['scheme']}://{host}", *self._access.origins)
        if any(origin not in own for origin in headers.getlist("origin")) or _is_foreign(scope, headers):
            return problem(403, "web pages of this origin may not ask; --cors-origin allows one", "origin")
        if self._key_digest is None or scope["path"] in _OPEN_PATHS:
            return None
        kind, _, key = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(_digest(key.strip()), self._key_digest):
            return None
        message = "the header must be Authorization: Bearer KEY with the server's API key"
        return problem(401, message, "authorization", headers={"WWW-Authenticate": "Bearer"})

    def _own_names(self) -> list[str]:
        """Names that the host of a request may have where no key is asked for."""
        names = [*LOOPBACK, *(urlsplit(origin).hostname or "" for origin in self._access.origins)]
        machine = socket.gethostname().lower()
        return names if self._access.host in LOOPBACK else [*names, machine, f"{machine}.local"]

    def _is_own_name(self, name: str) -> bool:
        if name in self._own_names():
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        # Nobody else can have an address, unlike a name, point to this machine.
        return self._access.host not in LOOPBACK


def _is_foreign(scope: Scope, headers: Headers) -> bool:
    """Whether a browser says that another site's page asks; pictures, scripts and links come without an origin."""
    if "origin" in headers or headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return False
    leads_here = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
    return not (leads_here and scope["method"] == "GET" and scope["path"] in _PAGES)


def _digest(key: str) -> bytes:
    """A digest of a key: all have one length, so that comparing two takes equally long."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _host_name(host: str) -> str:
    """The host of an address without its port: "127.0.0.1" of "127.0.0.1:8000", "::1" of "[::1]:8000"."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
