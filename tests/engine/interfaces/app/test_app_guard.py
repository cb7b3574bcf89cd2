"""Whom the app answers: its own page, and after a password those who know it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from app_process import running_app
from video_server import Answer, Asker, form, picture

from isoframe.engine import ConfigError, EngineConfig, InputError
from isoframe.engine.interfaces.app import admission
from isoframe.engine.interfaces.app.running import serve_page
from isoframe.engine.interfaces.server.http.listening import bind
from isoframe.engine.interfaces.server.serving import Serving
from isoframe.engine.interfaces.server.videos.engine_source import EngineSource

# All that reveals or changes something, and what each page loads.
ROUTES = [
    ("GET", "/"),
    ("GET", "/config"),
    ("GET", "/gradio_api/info"),
    ("GET", "/gradio_api/openapi.json"),
    ("GET", "/gradio_api/token"),
    ("GET", "/gradio_api/app_id"),
    ("GET", "/gradio_api/startup-events"),
    ("GET", "/gradio_api/queue/data?session_hash=a"),
    ("GET", "/gradio_api/queue/status"),
    ("GET", "/gradio_api/heartbeat/a"),
    ("GET", "/gradio_api/file=/etc/hostname"),
    ("GET", "/gradio_api/file/etc/hostname"),
    ("GET", "/gradio_api/upload_progress?upload_id=a"),
    ("GET", "/gradio_api/stream/a/b/1/playlist.m3u8"),
    ("GET", "/gradio_api/proxy=https://a.hf.space/"),
    ("GET", "/gradio_api/runs"),
    ("GET", "/monitoring"),
    ("GET", "/monitoring/summary"),
    ("GET", "/theme.css"),
    ("GET", "/assets/a.js"),
    ("GET", "/static/a"),
    ("GET", "/logout"),
    ("HEAD", "/"),
    ("OPTIONS", "/config"),
    ("OPTIONS", "/gradio_api/queue/join"),
    ("POST", "/login"),
    ("POST", "/gradio_api/upload"),
    ("POST", "/gradio_api/queue/join"),
    ("POST", "/gradio_api/run/make"),
    ("POST", "/gradio_api/api/make"),
    ("POST", "/gradio_api/call/make"),
    ("POST", "/gradio_api/cancel"),
    ("POST", "/gradio_api/reset"),
    ("POST", "/gradio_api/component_server"),
    ("POST", "/gradio_api/process_recording"),
    ("POST", "/gradio_api/vibe-edit"),
    ("POST", "/gradio_api/run-history/connect"),
    ("DELETE", "/config"),
]


@contextmanager
def app(folder: Path, *arguments: str, **variables: str) -> Iterator[Asker]:
    """The app behind proxies that nobody reaches."""
    dead = "http://127.0.0.1:1"
    proxies = {"HTTP_PROXY": dead, "http_proxy": dead, "NO_PROXY": "", "no_proxy": ""}
    with running_app(folder, *arguments, **proxies, **variables) as address:
        yield Asker(address.strip("/").replace("0.0.0.0", "127.0.0.1"))


@pytest.fixture(scope="module")
def open_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    with app(tmp_path_factory.mktemp("open")) as ask:
        yield ask


@pytest.fixture(scope="module")
def locked_app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    with app(tmp_path_factory.mktemp("locked"), "--host", "0.0.0.0", ISOFRAME_APP_AUTH="me:secret") as ask:
        yield ask


def strangers(port: int | None) -> list[dict[str, str]]:
    """What browsers tell of pages elsewhere."""
    return [
        {"Origin": "https://elsewhere.example"},
        {"Origin": f"http://127.0.0.1:{(port or 0) + 1}"},
        {"Origin": f"http://localhost:{port}"},
        {"Origin": f"https://127.0.0.1:{port}"},
        {"Origin": "null"},
        {"Origin": "https://elsewhere.example", "Access-Control-Request-Method": "POST"},
        {"Origin": f"http://127.0.0.1:{(port or 0) + 1}", "Access-Control-Request-Method": "POST"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        {"Host": f"elsewhere.example:{port}"},
        {"Host": f"elsewhere.example:{port}", "Origin": f"http://elsewhere.example:{port}"},
        {"Host": f"127.0.0.1.elsewhere.example:{port}"},
        {"Host": ""},
    ]


@pytest.mark.parametrize("which", ["open_app", "locked_app"])
def test_no_route_answers_to_another_origin(
    which: str, request: pytest.FixtureRequest, tell: Callable[[str], None]
) -> None:
    ask: Asker = request.getfixturevalue(which)
    answered = []
    for stranger in strangers(ask.port):
        for method, path in ROUTES:
            answer = ask(method, path, b"{}" if method == "POST" else None, stranger)
            if answer.status != 403 or "access-control-allow-origin" in answer.headers:
                answered.append((method, path, stranger, answer.status))
    tell(
        f"{len(ROUTES)} routes of the app ({which}) by {len(strangers(ask.port))} foreign origins: {len(answered)} answer"
    )
    assert answered == []


def test_the_own_page_is_served(open_app: Asker) -> None:
    own = {"Origin": open_app.url, "Sec-Fetch-Site": "same-origin"}
    assert open_app("GET", "/config", headers=own).status == 200
    assert b"Isoframe" in open_app("GET", "/").content
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert open_app("GET", "/", headers=link).status == 200
    assert open_app("GET", "/config", headers=link).status == 403
    other = {"Host": f"localhost:{open_app.port}", "Origin": f"http://localhost:{open_app.port}"}
    assert open_app("GET", "/config", headers=other).status == 200


def test_what_the_page_does_not_send_is_no_operation(open_app: Asker) -> None:
    for path in ("process_recording", "vibe-edit", "run-history/connect", "call/make", "stream/a"):
        assert open_app("POST", f"/gradio_api/{path}", b"{}").status == 405


def upload(ask: Asker, content: bytes) -> Answer:
    body, kind = form({}, {"files": content})
    return ask("POST", "/gradio_api/upload", body, {"Content-Type": kind})


def test_uploads_are_bounded_in_size_and_number(
    open_app: Asker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert upload(open_app, picture()).status == 200
    assert upload(open_app, bytes(20 * 2**20 + 1)).status == 413
    assert upload(open_app, bytes(60 * 2**20)).status == 413
    room = admission.OwnPosts(lambda *_: None, tmp_path, max_files=2, max_bytes=100)  # type: ignore[arg-type, return-value]  # never called
    (tmp_path / "a").write_bytes(b"x")
    assert room._has_room()
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "video").write_bytes(bytes(1000))
    assert room._has_room()
    (tmp_path / "b").write_bytes(b"x")
    assert not room._has_room()
    (tmp_path / "b").unlink()
    (tmp_path / "a").write_bytes(bytes(100))
    assert not room._has_room()


def test_with_a_password_nothing_is_told_before_it(locked_app: Asker) -> None:
    assert locked_app("GET", "/config").status == 401
    assert upload(locked_app, picture()).status == 401
    for host in (f"127.0.0.1:{locked_app.port}", f"192.168.1.7:{locked_app.port}"):
        headers = {"Host": host, "Origin": f"http://{host}"}
        assert locked_app("GET", "/config", headers=headers).status == 401

    def log_in(password: str) -> Answer:
        body = f"username=me&password={password}".encode()
        return locked_app("POST", "/login", body, {"Content-Type": "application/x-www-form-urlencoded"})

    right = log_in("secret")
    assert right.status == 200
    cookie = right.headers["set-cookie"].partition(";")[0].replace("unsecure-", "")
    name, _, value = cookie.partition("=")
    unsecure = name.replace("access-token-", "access-token-unsecure-")
    assert locked_app("GET", "/config", headers={"Cookie": f"{unsecure}={value}"}).status == 200
    start = time.monotonic()
    assert log_in("wrong").status == 400
    assert log_in("wronger").status == 400
    assert time.monotonic() - start >= 0.9
    # The many at once that a guesser would send are refused.
    found: list[int] = []
    guesses = [threading.Thread(target=lambda: found.append(log_in("guess").status)) for _ in range(12)]
    for guess in guesses:
        guess.start()
    deadline = time.monotonic() + 10
    while 429 not in found and time.monotonic() < deadline:
        time.sleep(0.05)
    assert 429 in found
    assert found.count(400) <= 3


def test_a_taken_port_is_told_before_a_model_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    serving = Serving(source=EngineSource(model="nothing/here", config=EngineConfig()), data=tmp_path)
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match="choose another --port"), serve_page(serving, port=port):
            pass
    with pytest.raises(ConfigError, match="port must be from 0 to 65535"), serve_page(serving, port=65536):
        pass
