"""A video that a client asks for, as JSON or as a form: how it is read, how large it may be, how slowly it may come."""

import asyncio
from dataclasses import dataclass

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
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
# What is left of a body that is too large or too slow is not read.
_HANG_UP = {"Connection": "close"}


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
    """ASGI middleware; the application reads the body, and what is wrong is raised where it reads."""

    def __init__(self, app: ASGIApp, upload_bytes: int, upload_seconds: float = UPLOAD_SECONDS) -> None:
        """Bodies with images of at most ``upload_bytes`` reach ``app``, whole within ``upload_seconds``."""
        self._app = app
        self._max_bytes = upload_bytes * 4 // 3 + _MAX_FIELDS_BYTES
        self._seconds = upload_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        deadline: float | None = asyncio.get_running_loop().time() + self._seconds
        num_bytes = 0

        async def limited() -> Message:
            nonlocal num_bytes, deadline
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError as error:
                raise HTTPException(
                    408, f"the body must arrive within {self._seconds:g} s", _HANG_UP
                ) from error
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise HTTPException(413, f"the body must have at most {self._max_bytes} bytes", _HANG_UP)
            if not message.get("more_body", False):
                # What is left to come is that the client leaves, which may take as long as the answer.
                deadline = None
            return message

        await self._app(scope, limited if scope["type"] == "http" else receive, send)
