"""How large a request may be, and how long it may take to arrive."""

import asyncio

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UPLOAD_SECONDS = 60.0
# Base64 has four characters for three bytes; the other fields are small.
_MAX_FIELDS_BYTES = 2**20
# What is left of the body is not read.
_HANG_UP = {"Connection": "close"}


class BodyLimit:
    """ASGI middleware; the application reads the body, and what is wrong is raised where it reads."""

    def __init__(self, app: ASGIApp, upload_bytes: int, upload_seconds: float = UPLOAD_SECONDS) -> None:
        """Bodies with images of at most ``upload_bytes`` reach ``app``, whole within ``upload_seconds``."""
        self._app = app
        self._max_bytes = upload_bytes * 4 // 3 + _MAX_FIELDS_BYTES
        self._seconds = upload_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] == "http":
            receive = _LimitedBody(receive, self._max_bytes, self._seconds)
        await self._app(scope, receive, send)


class _LimitedBody:
    def __init__(self, receive: Receive, max_bytes: int, seconds: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._seconds = seconds
        self._deadline = asyncio.get_running_loop().time() + seconds
        self._num_bytes = 0
        self._is_whole = False

    async def __call__(self) -> Message:
        if self._is_whole:
            # What is left to come is that the client leaves, which may take as long as the answer.
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            raise HTTPException(408, f"the body must arrive within {self._seconds:g} s", _HANG_UP) from error
        self._num_bytes += len(message.get("body", b""))
        if self._num_bytes > self._max_bytes:
            raise HTTPException(413, f"the body must have at most {self._max_bytes} bytes", _HANG_UP)
        self._is_whole = not message.get("more_body", False)
        return message
