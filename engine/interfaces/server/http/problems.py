"""Errors as HTTP answers: a code, a message, and the field that is meant."""

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from ....errors import BudgetError, CheckpointError, ConfigError, InputError, IsoframeError, QueueFullError
from ..videos.errors import FieldError, NotFinishedError, UnknownVideoError
from ..videos.parameters import VideoParameters, field_of
from .schemas import Problem, ProblemDetails

_logger = logging.getLogger(__name__)
_MAX_VALUE_CHARACTERS = 60
_MAX_MESSAGE_CHARACTERS = 200
# Of every status its code, what an exception without a field of its own is about, and what the document says of it.
_STATUSES = {
    400: ("malformed", "body", "The body is broken."),
    401: ("unauthorized", "authorization", "The API key is missing or wrong."),
    403: ("forbidden", "body", "A web page of another origin asked."),
    404: ("not_found", "path", "There is no such video."),
    405: ("method_not_allowed", "method", "The path has no such method."),
    408: ("too_slow", "body", "The body came too slowly."),
    409: ("not_finished", "video_id", "It is not there, or not yet."),
    413: ("too_large", "body", "The body is too large."),
    415: ("unsupported_type", "content-type", "The body is neither JSON nor a form."),
    422: ("invalid_request", "body", "A field or parameter is wrong; it is named."),
    429: ("queue_full", "queue", "The queue is full; Retry-After says when to try again."),
    503: ("busy", "body", "Too much is being uploaded; Retry-After says when to try again."),
    507: ("storage", "storage", "The server's disk is full."),
}
_OTHER = ("invalid_request", "body", "")
# Answers that are errors of one kind alone: the status, the field and the code.
_ANSWERS = {
    UnknownVideoError: (404, "video_id", None),
    NotFinishedError: (409, "video_id", None),
    BudgetError: (422, "height", "over_budget"),
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of an operation that may be refused with ``statuses``."""
    return {status: {"model": Problem, "description": _STATUSES[status][2]} for status in statuses}


def problem(
    status: int,
    message: str,
    field: str | None,
    *,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """The answer to a request that was refused."""
    details = ProblemDetails(
        code=code or _STATUSES.get(status, _OTHER)[0],
        message=_printable(message),
        field=None if field is None else _printable(field)[:_MAX_VALUE_CHARACTERS],
    )
    return JSONResponse(Problem(error=details).model_dump(), status, headers)


def install(app: FastAPI, retry_seconds: Callable[[], int]) -> None:
    """Have ``app`` answer with problems.

    Args:
        app: the application.
        retry_seconds: when a full queue may have room.
    """

    async def refuse(_: Request, error: Exception) -> JSONResponse:
        if isinstance(error, QueueFullError):
            headers = {"Retry-After": str(retry_seconds())}
            return problem(429, str(error), "queue", headers=headers)
        return _answer(error)

    for kind in (IsoframeError, OSError, HTTPException, RequestValidationError, ValidationError, Exception):
        app.add_exception_handler(kind, refuse)


def _answer(error: Exception) -> JSONResponse:
    """The problem that ``error`` is."""
    if isinstance(error, HTTPException):
        _, field, _ = _STATUSES.get(error.status_code, _OTHER)
        return problem(error.status_code, str(error.detail), field, headers=dict(error.headers or {}))
    if isinstance(error, RequestValidationError | ValidationError):
        first = error.errors()[0]
        # FastAPI puts before its name where a value stood: path, query or header.
        return _invalid(first, first["loc"][isinstance(error, RequestValidationError) :])
    if isinstance(error, FieldError):
        return problem(422, str(error), error.field)
    if type(error) in _ANSWERS:
        status, field, code = _ANSWERS[type(error)]
        return problem(status, str(error), field, code=code)
    if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
        _logger.error("a request failed on the server's disk: %s", error)
        return problem(507, "the server could not keep the video, its disk may be full", "storage")
    if isinstance(error, ConfigError | InputError | CheckpointError):
        return problem(422, str(error), field_of(str(error)))
    _logger.error("a request failed", exc_info=error)
    return problem(500, f"the server failed ({type(error).__name__}); its log says more", None, code="failed")


def _invalid(error: Mapping[str, Any], place: Sequence[object]) -> JSONResponse:
    """One of pydantic's errors, without values that are long."""
    field = ".".join(str(part) for part in place) or "body"
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(field[:_MAX_VALUE_CHARACTERS], VideoParameters.model_fields, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "; /openapi.json lists them"
        return problem(422, f"{field[:_MAX_VALUE_CHARACTERS]!r} is no field of a request{hint}", field)
    value = error.get("input")
    is_long = value is None or isinstance(value, dict | list | bytes)
    shown = "" if is_long else f", got {str(value)[:_MAX_VALUE_CHARACTERS]!r}"
    message = f"{field[:_MAX_VALUE_CHARACTERS]}: {error['msg'][:_MAX_MESSAGE_CHARACTERS]}{shown}"
    return problem(422, message, field)


def _printable(text: str) -> str:
    """``text`` without what cannot be sent as UTF-8."""
    return text.encode("utf-8", "replace").decode()
