"""A server of the demo model in this process, on a free port of this machine, and requests to it without a client library."""

import http.client
import io
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from isoframe.engine import Engine, EngineConfig
from isoframe.engine.interfaces.server.http.application import make_app
from isoframe.engine.interfaces.server.http.guard import Access
from isoframe.engine.interfaces.server.http.listening import address, bind, make_server
from isoframe.engine.interfaces.server.videos.limits import Limits
from isoframe.engine.interfaces.server.videos.service import VideoService
from isoframe.engine.interfaces.server.videos.workers import LocalWorkers

TIMEOUT = 60
# 5 frames: the smallest video that there is.
SMALL = {"prompt": "a red circle bounces", "seconds": 0.1, "num_steps": 1, "latent_window_size": 1}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered."""

    status: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)

    @property
    def field(self) -> str | None:
        """What an error is about."""
        return self.json["error"]["field"]


class Asker:
    """Sends requests to one server."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        parts = urlsplit(url)
        assert parts.hostname in ("127.0.0.1", "localhost", "::1")
        self.url, self.host, self.port = url, parts.hostname, parts.port
        self._headers = dict(headers or {})

    def __call__(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT)
        try:
            connection.request(method, path, body, self._headers | dict(headers or {}))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def send_json(self, values: object) -> Answer:
        """Ask for a video; ``values`` may be the text of the body."""
        text = values if isinstance(values, str | bytes) else json.dumps(values)
        body = text.encode() if isinstance(text, str) else text
        return self("POST", "/v1/videos", body, {"Content-Type": "application/json"})

    def send_form(self, fields: Mapping[str, object], image: bytes | None = None) -> Answer:
        """Ask for a video."""
        body, content_type = form(fields, {} if image is None else {"image": image})
        return self("POST", "/v1/videos", body, {"Content-Type": content_type})

    def make(self, **changes: object) -> str:
        """Id of a small video that is being made."""
        answer = self.send_form({**SMALL, **changes}, picture())
        assert answer.status == 201, answer.content
        return str(answer.json["id"])

    def wait(self, name: str, *, until: Callable[[Any], bool] | None = None) -> Any:
        """The video once it is over, or as told."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            video = self("GET", f"/v1/videos/{name}").json
            if until(video) if until else video["status"] in ("completed", "failed", "cancelled"):
                return video
            time.sleep(0.02)
        raise TimeoutError(name)

    def events(self, name: str, last_id: str | None = None) -> list[dict[str, Any]]:
        """All Server-Sent Events until the stream ends, each with its id, kind and data."""
        headers = {} if last_id is None else {"Last-Event-ID": last_id}
        answer = self("GET", f"/v1/videos/{name}/events", headers=headers)
        assert answer.status == 200, answer.content
        return [parse_event(block) for block in answer.content.decode().split("\n\n") if block]


def parse_event(block: str) -> dict[str, Any]:
    """One Server-Sent Event."""
    fields = dict(line.split(": ", 1) for line in block.splitlines())
    return {"id": fields.get("id"), "kind": fields["event"], **json.loads(fields["data"])}


def form(fields: Mapping[str, object], files: Mapping[str, bytes], name: str = "a.png") -> tuple[bytes, str]:
    """A multipart body and its type."""
    boundary = secrets.token_hex(8)
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'.encode()
        for key, value in fields.items()
    ]
    for key, content in files.items():
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"; filename="{name}"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"


def picture(width: int = 64, height: int = 64, kind: str = "PNG", **options: Any) -> bytes:
    """The file of an image."""
    content = io.BytesIO()
    Image.new("RGB", (width, height), (200, 60, 40)).save(content, format=kind, **options)
    return content.getvalue()


class KeptWorkers(LocalWorkers):
    """Leaves its engine to other tests."""

    def close(self) -> None:
        pass


def load(cache: Path) -> Engine:
    """The demo model with a queue that is never full."""
    return Engine.load("demo", config=EngineConfig(cache_dir=cache, device="cpu", max_queued_jobs=1000))


@contextmanager
def serving(
    service: VideoService, access: Access | None = None, *, upload_seconds: float = 60.0, port: int = 0
) -> Iterator[Asker]:
    """A server in a thread, which stops with the context."""
    is_up = threading.Event()
    with bind("127.0.0.1", port) as listener:
        app = make_app(service, access, upload_seconds=upload_seconds)
        server = make_server(app, on_start=is_up.set, on_stop=service.announce_close)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            assert is_up.wait(TIMEOUT)
            key = None if access is None else access.api_key
            yield Asker(address(listener), {} if key is None else {"Authorization": f"Bearer {key}"})
        finally:
            server.should_exit = True
            thread.join(TIMEOUT)
        assert not thread.is_alive()


def small_limits() -> Limits:
    """So that no request of a test can be long."""
    return Limits(upload_bytes=2**20, image_pixels=10**6, seconds=4, num_steps=100, video_pixels=128 * 128)
