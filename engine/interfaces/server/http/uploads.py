"""A video that a client asks for, as JSON or as a form: how it is read, how large it may be, how slowly it may come."""

import asyncio
import contextlib
from dataclasses import dataclass

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, Headers, MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..videos.errors import FieldError
from ..videos.parameters import VideoParameters
from ..videos.pictures import decode_base64
from .schemas import VideoBody, VideoForm

FORM = "multipart/form-data"
JSON = "application/json"
UPLOAD_SECONDS = 60.0
# Base64 has four characters for three bytes; the other fields are small.
_MAX_FIELDS_BYTES = 2**20
_MAX_FIELDS = 64
_MAX_EPILOGUE_BYTES = 128
# Of the largest bodies, in memory at once; decoding takes twice that.
_BODIES_AT_ONCE = 4
_BUSY_SECONDS = "5"
_READ_ON_BYTES = 64 * 2**20
_READ_ON_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """What a client sent.

    Attributes:
        content: the body as JSON, or the image's file.
        fields: of a form; None for JSON.
    """

    content: bytes
    fields: dict[str, object] | None

    def parse(self) -> tuple[VideoParameters, bytes]:
        """What is wanted, and the image's file; takes a while for large bodies.

        Raises:
            ValidationError: a field has a wrong type or value.
            FieldError: the image is no base64.
        """
        if self.fields is not None:
            return VideoForm.model_validate({**self.fields, "image": ""}), self.content
        body = VideoBody.model_validate_json(self.content, strict=True)
        return body, decode_base64(body.image)


async def receive_upload(request: Request) -> Upload:
    """Read the body.

    Raises:
        HTTPException: it has another type, is too large, too slow or broken.
        FieldError: the form has no image, or a field twice.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type == JSON:
        return Upload(content=await request.body(), fields=None)
    if content_type != FORM:
        raise HTTPException(415, f"content-type must be {JSON} or {FORM}, got {content_type[:60]!r}")
    # A form that is cut off must not reach the parser, which leaves the file of its last part open.
    _check_whole(await request.body(), request.headers["content-type"])
    async with request.form(max_files=1, max_fields=_MAX_FIELDS) as form:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise FieldError(
                "image", "image must be a file of the form, with a file name; it is missing or cut off"
            )
        return Upload(content=await image.read(), fields=_fields(form))


def _check_whole(body: bytes, content_type: str) -> None:
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise HTTPException(400, "content-type must name the boundary of the form")
    if b"--" + boundary + b"--" not in body[-len(boundary) - _MAX_EPILOGUE_BYTES :]:
        raise HTTPException(400, "the form must end with its boundary; it is cut off or has another one")


def _fields(form: FormData) -> dict[str, object]:
    """The fields of a form, the image left out."""
    fields: dict[str, object] = {}
    for name, value in form.multi_items():
        if name in fields or (name == "image" and len(form.getlist(name)) > 1):
            raise FieldError(name, f"{name[:60]} must be given once")
        if isinstance(value, UploadFile) != (name == "image"):
            raise FieldError(name, f"{name[:60]} must be text, and image alone a file")
        if name != "image":
            fields[name] = value
    return fields


class BodyLimit:
    """ASGI middleware; the application reads the body, and what is wrong is raised where it reads.

    An answer that comes before the whole body has the connection closed after it, and what still comes is read for a while:
    a client that sends all before it reads would otherwise see a broken connection and not the answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        upload_bytes: int,
        upload_seconds: float = UPLOAD_SECONDS,
        bodies_at_once: int = _BODIES_AT_ONCE,
    ) -> None:
        """Limit what reaches ``app``.

        Args:
            app: reads the bodies.
            upload_bytes: of the images of one body.
            upload_seconds: in which a body must have arrived.
            bodies_at_once: largest bodies that all connections together may have under way.
        """
        self._app = app
        self._max_bytes = upload_bytes * 4 // 3 + _MAX_FIELDS_BYTES
        self._seconds = upload_seconds
        # What all connections together may still send.
        self._room = bodies_at_once * self._max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        body = _Body(has_more=headers.get("content-length", "0") != "0" or "transfer-encoding" in headers)
        deadline: float | None = asyncio.get_running_loop().time() + self._seconds

        async def limited() -> Message:
            nonlocal deadline
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(408, f"the body must arrive within {self._seconds:g} s") from error
            num_bytes = len(message.get("body", b""))
            body.num_bytes += num_bytes
            body.has_more = message.get("more_body", False)
            if not body.is_answered:
                body.num_held += num_bytes
                self._room -= num_bytes
            if body.num_bytes > self._max_bytes:
                raise HTTPException(413, f"the body must have at most {self._max_bytes} bytes")
            if self._room < 0:
                told = "too much is being uploaded at once; try again soon"
                raise HTTPException(503, told, {"Retry-After": _BUSY_SECONDS})
            if not body.has_more:
                # What is left to come is that the client leaves, which may take as long as the answer.
                deadline = None
            return message

        def give_back() -> None:
            self._room += body.num_held
            body.is_answered, body.num_held = True, 0

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                give_back()
                if body.has_more:
                    MutableHeaders(scope=message)["connection"] = "close"
            elif body.has_more and not message.get("more_body", False):
                await send({**message, "more_body": True})
                # A client that asks before it sends its body sends none after an answer.
                if "expect" not in headers:
                    await self._read_on(receive)
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            await self._app(scope, limited, answer)
        finally:
            give_back()

    async def _read_on(self, receive: Receive) -> None:
        """Read what a client still sends, and drop it."""
        num_bytes = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_READ_ON_SECONDS):
                while num_bytes < _READ_ON_BYTES:
                    message = await receive()
                    num_bytes += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        break


@dataclass(slots=True)
class _Body:
    """How far a request's body was read, and how much of it memory may still hold."""

    has_more: bool
    is_answered: bool = False
    num_bytes: int = 0
    num_held: int = 0
