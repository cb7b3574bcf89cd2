"""A server refuses what it cannot use: with the field that is meant, at once, and without a trace."""

import gc
import http.client
import io
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from bad_uploads import BadUpload, bad_uploads
from PIL import Image
from video_server import SMALL, Asker, KeptWorkers, form, load, picture, serving, small_limits

from isoframe.engine import Engine
from isoframe.engine.interfaces.server.http import listening
from isoframe.engine.interfaces.server.videos.service import VideoService

BAD_UPLOADS = bad_uploads()
BAD_PATHS = [
    "/v1/videos/..%2f..%2fetc%2fpasswd",
    "/v1/videos/../../etc/passwd",
    "/v1/videos/%2e%2e/%2e%2e/etc/passwd/content",
    "/v1/videos/video_000000000000000000000000%00",
    "/v1/videos/video_00000000000000000000000Z",
    "/v1/videos/video_000000000000000000000000/content",
    "/v1/videos/video_000000000000000000000000/previews/-1",
    "/v1/videos/video_000000000000000000000000/previews/..%2f..%2fjob.json",
    "/v1/videos/video_000000000000000000000000/previews/99999999999999999999",
    "/v1/videos/video_000000000000000000000000/events",
    "/v1/videos?limit=0",
    "/v1/videos?limit=1000000",
    "/v1/videos?limit=NaN",
    "/v1/videos?after=../../etc/passwd",
    "/v1/videos?after=video_000000000000000000000000",
    "/v1/videos?order=random",
    "/v1/nothing",
]
MAX_SECONDS = 5


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(tmp_path_factory.mktemp("cache")) as engine:
        yield engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def ask(engine: Engine, folder: Path) -> Iterator[Asker]:
    with serving(VideoService(KeptWorkers(engine), folder, limits=small_limits()), upload_seconds=0.5) as ask:
        # What is loaded with the first video stays open.
        ask.wait(ask.make())
        files = open_files()
        yield ask
        gc.collect()
        assert set(open_files()) <= set(files)


@pytest.fixture(autouse=True)
def _nothing_is_left(ask: Asker, folder: Path) -> Iterator[None]:
    jobs = set((folder / "jobs").iterdir())
    yield
    assert set((folder / "jobs").iterdir()) == jobs
    assert ask("GET", "/healthz").status == 200


def open_files() -> list[str]:
    """Without connections, which close a little later."""
    return [file.path for file in psutil.Process().open_files()]


def test_the_corpus_is_large() -> None:
    assert len(BAD_UPLOADS) + len(BAD_PATHS) >= 60
    assert len({bad.name for bad in BAD_UPLOADS}) == len(BAD_UPLOADS)


@pytest.mark.parametrize("bad", BAD_UPLOADS, ids=lambda bad: bad.name)
def test_a_bad_upload_is_refused_with_the_field_that_is_meant(ask: Asker, bad: BadUpload) -> None:
    start = time.monotonic()
    answer = ask("POST", "/v1/videos", bad.body, {"Content-Type": bad.content_type})
    assert 400 <= answer.status < 500, answer.content
    assert (answer.field or "").partition(".")[0] == bad.field, answer.content
    assert time.monotonic() - start < MAX_SECONDS
    assert len(answer.content) < 1000


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_bad_path_or_query_is_refused_with_its_name(ask: Asker, path: str) -> None:
    answer = ask("GET", path)
    assert answer.status in (404, 422), answer.content
    assert answer.field in {"path", "video_id", "limit", "after", "order", "section"}


def test_a_file_name_that_leads_elsewhere_is_not_used(ask: Asker, folder: Path) -> None:
    for name in ("../../../../tmp/evil.png", "/etc/passwd", "a\x00b.png", "..\\..\\evil.png", "ü" * 500):
        body, kind = form(SMALL, {"image": picture()}, name=name)
        made = ask("POST", "/v1/videos", body, {"Content-Type": kind})
        assert made.status == 201, made.content
        ask.wait(made.json["id"])
        files = {path.name for path in (folder / "jobs" / made.json["id"]).rglob("*")}
        assert not {path for path in files if "evil" in path or "ü" in path}
        ask("DELETE", f"/v1/videos/{made.json['id']}")


def test_of_an_animation_the_first_frame_is_taken_and_prompts_may_have_any_letters(ask: Asker) -> None:
    frames = [Image.new("RGB", (64, 64), color) for color in ("red", "blue")]
    content = io.BytesIO()
    frames[0].save(content, format="GIF", save_all=True, append_images=frames[1:])
    for changes in ({}, {"prompt": "红色圆圈 🎬 \u202e \x07"}):
        made = ask.send_form({**SMALL, **changes}, content.getvalue())
        assert made.status == 201, made.content
        video = ask.wait(made.json["id"])
        assert (video["status"], video["prompt"]) == ("completed", {**SMALL, **changes}["prompt"])
        ask("DELETE", f"/v1/videos/{made.json['id']}")


@pytest.mark.parametrize("is_told", [True, False])
def test_a_body_beyond_the_limit_is_refused_before_it_is_read(ask: Asker, is_told: bool) -> None:
    connection = http.client.HTTPConnection(ask.host, ask.port, timeout=MAX_SECONDS)
    connection.putrequest("POST", "/v1/videos")
    connection.putheader("Content-Type", "application/json")
    connection.putheader(*(("Content-Length", str(2**40)) if is_told else ("Transfer-Encoding", "chunked")))
    connection.endheaders()
    piece = b"x" * 2**18
    try:
        for _ in range(20):
            connection.send(piece if is_told else b"%x\r\n%b\r\n" % (len(piece), piece))
    except OSError:
        # The server answered and hung up.
        pass
    try:
        answer = connection.getresponse()
        assert answer.status == 413
        assert b'"field":"body"' in answer.read()
    except ConnectionResetError:
        # The system threw the answer away with what was not read.
        pass
    finally:
        connection.close()


def test_a_slow_upload_is_given_up(ask: Asker) -> None:
    start = time.monotonic()
    with socket.create_connection((ask.host, ask.port), timeout=MAX_SECONDS) as client:
        head = "POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        client.sendall(f'{head}Content-Length: 1000\r\n\r\n{{"prompt": "'.encode())
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b"within 0.5 s" in answer
    assert time.monotonic() - start < MAX_SECONDS


def test_a_client_that_leaves_in_the_middle_leaves_nothing(ask: Asker) -> None:
    body, kind = form(SMALL, {"image": picture()})
    head = f"POST /v1/videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
    with socket.create_connection((ask.host, ask.port), timeout=MAX_SECONDS) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[: len(body) // 2])
    assert ask("GET", "/healthz").status == 200


def test_a_connection_on_which_headers_do_not_end_is_closed(
    ask: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "_IDLE_SECONDS", 0.2)
    with socket.create_connection((ask.host, ask.port), timeout=MAX_SECONDS) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-")
        assert client.recv(1) == b""
    with socket.create_connection((ask.host, ask.port), timeout=MAX_SECONDS) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert client.recv(4096).startswith(b"HTTP/1.1 200")
        client.sendall(b"GET /hea")
        while client.recv(4096):
            pass


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\x00" * 100, b"A" * 100_000])
def test_what_is_no_http_is_refused(ask: Asker, junk: bytes) -> None:
    with socket.create_connection((ask.host, ask.port), timeout=MAX_SECONDS) as client:
        client.sendall(junk + b"\r\n\r\n")
        answer = client.recv(4096)
    assert answer.startswith(b"HTTP/1.1 400")
