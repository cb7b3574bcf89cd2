"""What visitors of the page may do: how often they may try a password, and how much they may upload."""

import asyncio
import hmac
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from ..server.http.problems import problem

_API = "/gradio_api"
# All that the page itself posts; Gradio has more, such as one that runs FFmpeg on what it is sent.
_POSTS = ("/login", f"{_API}/queue/join", f"{_API}/cancel", f"{_API}/reset", f"{_API}/upload")
_RUNS = f"{_API}/run/"
# Of everything that was uploaded, which goes after some hours.
_MAX_FILES = 1000
_MAX_BYTES = 2 * 2**30
_RETRY_SECONDS = "600"
_LONGEST_PAUSE_SECONDS = 8.0
_MOST_ATTEMPTS = 8


class Login:
    """Admits one user; attempts come one after the other, and after wrong ones with growing pauses."""

    def __init__(self, user: str, password: str) -> None:
        """Ask for ``user`` and ``password``."""
        self._expected = f"{user}:{password}".encode()
        self._turn = asyncio.Lock()
        self._num_attempts = self._num_wrong = 0
        self._opens = 0.0

    async def admit(self, user: str, password: str) -> bool:
        """Whether these are the user and the password; raises HTTPException (429) while too many others try."""
        if self._num_attempts >= _MOST_ATTEMPTS:
            raise HTTPException(429, "too many logins at once; try again later", {"Retry-After": "60"})
        self._num_attempts += 1
        try:
            async with self._turn:
                clock = asyncio.get_running_loop().time
                await asyncio.sleep(max(self._opens - clock(), 0.0))
                is_right = hmac.compare_digest(
                    f"{user}:{password}".encode("utf-8", "replace"), self._expected
                )
                self._num_wrong = 0 if is_right else self._num_wrong + 1
                pause = min(0.5 * 2.0 ** min(self._num_wrong, 8), _LONGEST_PAUSE_SECONDS)
                self._opens = clock() + (0.0 if is_right else pause)
                return is_right
        finally:
            self._num_attempts -= 1


class OwnPosts:
    """ASGI middleware that passes on what the page itself sends, and uploads while there is room for them."""

    def __init__(
        self, app: ASGIApp, uploads: Path, *, max_files: int = _MAX_FILES, max_bytes: int = _MAX_BYTES
    ) -> None:
        """``uploads`` is the folder in which ``app`` keeps what it is sent."""
        self._app, self._uploads = app, uploads
        self._max_files, self._max_bytes = max_files, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve or refuse one request."""
        refusal = self._refuse(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refuse(self, scope: Scope) -> ASGIApp | None:
        if scope["method"] in ("GET", "HEAD"):
            return None
        path = scope["path"].rstrip("/")
        if scope["method"] != "POST" or not (path in _POSTS or path.startswith(_RUNS)):
            return problem(405, "the page has no such operation", "method")
        if path.endswith("/upload") and not self._has_room():
            told = "too many files were uploaded; they go after some hours"
            return problem(503, told, "body", headers={"Retry-After": _RETRY_SECONDS})
        return None

    def _has_room(self) -> bool:
        # Of links to videos the page has no copies.
        files = [
            path
            for path in self._uploads.rglob("*")
            if path.is_file() and path.relative_to(self._uploads).parts[0] != "shown"
        ]
        return len(files) < self._max_files and sum(path.stat().st_size for path in files) < self._max_bytes
