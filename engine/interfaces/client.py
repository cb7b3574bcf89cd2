"""A program's side of ``isoframe serve``: requests as the JSON that a server takes; the standard library is enough."""

import base64
import dataclasses
import http.client
import io
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import ConfigError, IsoframeError
from ..files import expanded, replace_when_whole
from ..request.codec import to_dict
from ..request.config import Request
from ..request.fields import offered

_TAKEN = offered(Request, "server")


def request_fields(request: Request) -> dict[str, Any]:
    """What differs from the defaults, and the image in base64.

    Raises:
        ConfigError: there is no image, or a server does not take a field that is set.
        OSError: the image cannot be read.
    """
    if request.image is None:
        raise ConfigError("image must be given, a server makes no video without one; got None")
    changed = [field.name for field in dataclasses.fields(request) if _is_set(request, field)]
    for name in changed:
        if name not in _TAKEN:
            raise ConfigError(f"{name} must be left as it is, a server does not take it")
    values = to_dict(request)
    fields = {name: values[name] for name in changed}
    if "size" in fields:
        fields |= dict(zip(("height", "width"), fields.pop("size"), strict=True))
    for lora in fields.get("loras", ()):
        lora["name"] = lora.pop("source")
    return fields | {"image": base64.b64encode(_file(request.image)).decode()}


def _is_set(request: Request, field: "dataclasses.Field[Any]") -> bool:
    value = getattr(request, field.name)
    # Arrays are not compared with None: they answer for every element.
    return value is not None if field.default in (None, dataclasses.MISSING) else bool(value != field.default)


def _file(image: object) -> bytes:
    """The bytes of an image's file."""
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    from ..media.images import load_image

    content = io.BytesIO()
    load_image(image).save(content, format="PNG")
    return content.getvalue()


_RETRY_SECONDS = 0.5


class ServerError(IsoframeError):
    """The server refused a request.

    Attributes:
        status: of HTTP.
        code: for programs.
        field: what is wrong.
        retry_seconds: when a full queue may have room; None for other errors.
    """

    def __init__(self, error: urllib.error.HTTPError) -> None:
        try:
            details = json.loads(error.read())["error"]
            code, message, field = details["code"], details["message"], details["field"]
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            # A proxy in front of the server has words of its own.
            code, message, field = "unknown", error.reason, None
        super().__init__(f"the server answers {error.code}: {message}")
        self.status, self.code, self.field = error.code, code, field
        retry = error.headers.get("Retry-After", "")
        self.retry_seconds = int(retry) if retry.isdecimal() else None


class Client:
    """Talks to one server, without a proxy. Videos are dictionaries as the server's /docs describes them.

    Every method raises :class:`ServerError` where the server refuses, and OSError where it cannot be reached.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        patience: float = 60.0,
    ) -> None:
        """A client of the server at ``url``.

        Args:
            url: of the server.
            api_key: if it wants one.
            timeout: seconds without an answer after which a request fails with OSError.
            patience: seconds that :meth:`events` waits for a server that starts again.
        """
        self._url = url.rstrip("/")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._timeout = timeout
        self._patience = patience
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _KeyStaysHere)

    def create(
        self, request: Request, *, priority: int = 0, previews: bool = False, key: str | None = None
    ) -> dict[str, Any]:
        """Have a video made.

        Args:
            request: what is to be seen.
            priority: of the queue.
            previews: draw a picture of the latents at every step.
            key: of your own for this video: the same request with it once more, after a connection that broke or a restart
                of the server, gives the same video.

        Raises:
            ServerError: the server refuses it; 429 means that its queue is full.
            ConfigError: a server does not take a field of ``request``.
        """
        body = {**request_fields(request), "priority": priority, "previews": previews}
        headers = {} if key is None else {"Idempotency-Key": key}
        return self._json("POST", "/v1/videos", json.dumps(body).encode(), headers)

    def get(self, name: str) -> dict[str, Any]:
        """How a video stands."""
        return self._json("GET", f"/v1/videos/{name}")

    def videos(self) -> Iterator[dict[str, Any]]:
        """All videos, the newest first."""
        page = self._json("GET", "/v1/videos?limit=100")
        yield from page["data"]
        while page["has_more"]:
            page = self._json("GET", f"/v1/videos?limit=100&after={page['last_id']}")
            yield from page["data"]

    def models(self) -> list[dict[str, Any]]:
        """What the server runs."""
        models: list[dict[str, Any]] = self._json("GET", "/v1/models")["data"]
        return models

    def cancel(self, name: str) -> dict[str, Any]:
        """Stop making a video, after the step at hand."""
        return self._json("POST", f"/v1/videos/{name}/cancel")

    def delete(self, name: str) -> None:
        """Remove a video and its files."""
        self._json("DELETE", f"/v1/videos/{name}")

    def events(self, name: str) -> Iterator[dict[str, Any]]:
        """What has happened and what happens; "event" is its kind, and the last one is the video.

        Goes on where it was when the connection breaks; a server that starts again tells all of its new run.
        """
        last_id, deadline = "", time.monotonic() + self._patience
        while True:
            try:
                headers = {"Last-Event-ID": last_id} if last_id else {}
                with self._answer("GET", f"/v1/videos/{name}/events", headers=headers) as response:
                    for event in _read_events(response):
                        last_id = event.pop("id", last_id) if event["event"] != "video" else last_id
                        deadline = time.monotonic() + self._patience
                        yield event
                        if event["event"] == "video":
                            return
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_RETRY_SECONDS)

    def wait(self, name: str) -> dict[str, Any]:
        """The video once it is over; "status" is "completed", "failed" or "cancelled"."""
        *_, video = self.events(name)
        return video

    def download(self, name: str, path: str | os.PathLike[str]) -> Path:
        """Write the MP4 to ``path``, which appears whole."""
        path = Path(expanded(path))
        with (
            self._answer("GET", f"/v1/videos/{name}/content") as response,
            replace_when_whole(path) as temporary,
        ):
            with temporary.open("wb") as file:
                shutil.copyfileobj(response, file)
            if response.length:
                # Reading in pieces ends without an error.
                raise ConnectionError(f"the answer of {self._url} broke off {response.length} bytes early")
        return path

    def _json(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        with self._answer(method, path, body, headers) as response:
            values: dict[str, Any] = json.load(response)
        return values

    @contextmanager
    def _answer(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Iterator[Any]:
        headers = {**self._headers, "Content-Type": "application/json", **(headers or {})}
        request = urllib.request.Request(self._url + path, body, headers, method=method)
        try:
            with self._opener.open(request, timeout=self._timeout) as response:
                yield response
        except urllib.error.HTTPError as error:
            with error:
                raise ServerError(error) from error
        except http.client.HTTPException as error:
            raise ConnectionError(f"the answer of {self._url} broke off: {error!r}") from error


class _KeyStaysHere(urllib.request.HTTPRedirectHandler):
    """Follows redirects; another server, or this one without TLS, does not get the key."""

    def redirect_request(self, req: urllib.request.Request, *told: Any) -> urllib.request.Request | None:
        """The request to the new address."""
        new = super().redirect_request(req, *told)
        if new is not None and (new.type, new.host) != (req.type, req.host):
            new.remove_header("Authorization")
        return new


def _read_events(response: Any) -> Iterator[dict[str, Any]]:
    fields: dict[str, str] = {}
    for line in response:
        name, _, value = line.decode().rstrip("\n").partition(": ")
        if name in ("id", "event", "data"):
            fields[name] = value
        elif not name and fields:
            values = json.loads(fields["data"])
            yield {**values, "event": fields["event"], **({"id": fields["id"]} if "id" in fields else {})}
            fields = {}
