"""The client of the server, from request to file, and through a restart of the server."""

import copy
import dataclasses
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from video_server import TIMEOUT, KeptWorkers, load, picture, serving, small_limits

from isoframe.engine import ConfigError, Engine, LoraStrength, Request
from isoframe.engine.interfaces.client import Client, ServerError, request_fields
from isoframe.engine.interfaces.server.http.guard import Access
from isoframe.engine.interfaces.server.http.schemas import VideoBody
from isoframe.engine.interfaces.server.videos.parameters import VideoParameters
from isoframe.engine.interfaces.server.videos.service import VideoService
from isoframe.engine.interfaces.server.videos.workers import LocalWorkers

FIELDS = [field.name for field in dataclasses.fields(Request)]
KEY = "0123456789abcdef0123"
REQUEST = Request(
    image=Image.new("RGB", (64, 64), (200, 60, 40)), prompt="a red circle bounces", seconds=0.1,
    num_steps=2, latent_window_size=1, size=(64, 80),
)  # fmt: skip


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(tmp_path_factory.mktemp("cache")) as engine:
        yield engine


@pytest.fixture(scope="module")
def client(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    service = VideoService(KeptWorkers(engine), tmp_path_factory.mktemp("data"), limits=small_limits())
    with serving(service, Access(api_key=KEY)) as ask:
        yield Client(ask.url, api_key=KEY, patience=5)


def test_the_video_is_that_of_the_engine(client: Client, engine: Engine, tmp_path: Path) -> None:
    created = client.create(REQUEST, previews=True)
    events = list(client.events(created["id"]))
    assert [event["event"] for event in events[:2]] == ["queued", "started"]
    assert [event["step"] for event in events if event["event"] == "step"] == [0, 1]
    assert events[-1]["status"] == "completed"
    path = client.download(created["id"], tmp_path / "video.mp4")
    straight = engine.render(REQUEST, tmp_path / "straight.mp4").path
    assert path.read_bytes() == straight.read_bytes()
    assert [file.name for file in tmp_path.glob("*.tmp")] == []


def test_videos_are_listed_cancelled_and_deleted(client: Client) -> None:
    assert client.models()[0]["id"] == "demo"
    long = client.create(
        Request(image=REQUEST.image, prompt="a", seconds=3.9, num_steps=100, latent_window_size=1)
    )
    client.cancel(long["id"])
    assert client.wait(long["id"])["status"] == "cancelled"
    assert next(client.videos())["id"] == long["id"]
    client.delete(long["id"])
    with pytest.raises(ServerError, match="the server answers 404: there is no video of this id"):
        client.get(long["id"])


def test_an_error_has_its_field_and_its_code(client: Client) -> None:
    with pytest.raises(ServerError) as caught:
        client.create(Request(image=REQUEST.image, prompt="a", seconds=60))
    assert (caught.value.status, caught.value.field) == (422, "seconds")
    with pytest.raises(ServerError) as caught:
        Client(client._url).get("video_0")
    assert (caught.value.status, caught.value.code) == (401, "unauthorized")


def test_events_go_on_through_a_restart_of_the_server(engine: Engine, tmp_path: Path) -> None:
    found: list[str] = []
    with serving(VideoService(LocalWorkers(load(tmp_path / "cache")), tmp_path)) as ask:
        client = Client(ask.url, patience=TIMEOUT)
        first = client.create(
            Request(image=REQUEST.image, prompt="a", seconds=3.9, num_steps=100, latent_window_size=1)
        )["id"]
        name = client.create(REQUEST)["id"]
        reader = threading.Thread(target=lambda: found.append(client.wait(name)["status"]))
        reader.start()
        port = ask.port
    with serving(VideoService(KeptWorkers(engine), tmp_path), port=port):
        client.delete(first)
        reader.join(TIMEOUT)
    assert found == ["completed"]


def test_a_server_that_does_not_come_back_is_told() -> None:
    client = Client("http://127.0.0.1:1", patience=0)
    with pytest.raises(OSError, match="refused"):
        list(client.events("video_0"))


@contextmanager
def answering(answer: bytes) -> Iterator[Client]:
    """A client of a server that says one thing and hangs up."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield Client(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join(TIMEOUT)


def test_the_key_is_not_sent_to_another_host() -> None:
    heard: list[bytes] = []

    def redirect(listener: socket.socket, target: str) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.recv(4096))
                status = (
                    b"HTTP/1.1 307 T\r\nLocation: " + target.encode()
                    if len(heard) == 1
                    else b"HTTP/1.1 200 OK"
                )
                connection.sendall(status + b"\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")

    for name, has_key in (("localhost", False), ("127.0.0.1", True)):
        heard.clear()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            thread = threading.Thread(target=redirect, args=(listener, f"http://{name}:{port}/v1/videos/b"))
            thread.start()
            Client(f"http://127.0.0.1:{port}", api_key=KEY).get("a")
            thread.join(TIMEOUT)
        assert [b"Authorization" in request for request in heard] == [True, has_key]


def test_the_same_key_makes_one_video(client: Client) -> None:
    names = [client.create(REQUEST, key="once")["id"] for _ in range(2)]
    assert names[0] == names[1]
    client.wait(names[0])


def test_an_answer_that_breaks_off_is_no_connection() -> None:
    with (
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{") as client,
        pytest.raises(ConnectionError, match="broke off"),
    ):
        client.get("video_0")


def test_a_download_that_breaks_off_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "video.mp4").write_bytes(b"earlier")
    with (
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf a video") as client,
        pytest.raises(ConnectionError, match="broke off 88 bytes early"),
    ):
        client.download("video_0", tmp_path / "video.mp4")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("video.mp4", b"earlier")]


@pytest.mark.parametrize(
    "body", [b"<html>", b'{"error": "no upstream"}', b'{"error": {"message": "m"}}', b"[]"]
)
def test_an_error_of_a_proxy_is_told_in_its_own_words(body: bytes) -> None:
    head = b"HTTP/1.1 502 Bad Gateway\r\nRetry-After: Sat, 21 Nov 2026 12:00:00 GMT\r\n"
    with (
        answering(head + f"Content-Length: {len(body)}\r\n\r\n".encode() + body) as client,
        pytest.raises(ServerError, match="the server answers 502: Bad Gateway") as caught,
    ):
        client.get("video_0")
    assert (caught.value.code, caught.value.field, caught.value.retry_seconds) == ("unknown", None, None)


def test_fields_that_the_server_does_not_know_are_refused_and_no_others() -> None:
    # Values that differ from the defaults; some together are no request, which is not what is asked here.
    others = {
        str: "other",
        bool: True,
        int: 7,
        float: 0.25,
        tuple: (0,),
        type(None): np.zeros((2, 2), np.uint8),
    }
    plain, refused = dataclasses.replace(REQUEST, size=None), {}
    for name in FIELDS:
        request = copy.copy(plain)
        if name not in ("image", "size", "loras"):
            object.__setattr__(request, name, others[type(getattr(plain, name))])
        try:
            fields = request_fields(request)
        except ConfigError as error:
            refused[name] = str(error)
        else:
            assert set(fields) <= set(VideoBody.model_fields)
            assert name in fields or name in ("size", "loras")
    unknown = set(FIELDS) - set(VideoBody.model_fields) - {"size"}
    assert refused == {name: f"{name} must be left as it is, a server does not take it" for name in unknown}


def test_a_request_without_an_image_is_refused() -> None:
    with pytest.raises(ConfigError, match="image must be given"):
        request_fields(Request(image=None, prompt="a"))


def test_every_field_of_a_request_is_one_of_the_server_or_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    request = Request(
        image=tmp_path / "a.png", prompt="a", negative_prompt="b", seconds=0.5, size=(64, 80), order="forward",
        fps=24, crf=20, num_steps=3, guidance_scale=5.0, cfg_scale=2.0, cfg_rescale=0.5, seed=1,
        latent_window_size=2, sampler="euler", step_cache="teacache", step_cache_threshold=0.2,
        step_cache_max_skips=2, step_cache_retention=0.1, posterior="mode", prompt_blend=0.5,
        loras=(LoraStrength(source="style", strength=0.5, sections=(0,)),),
    )  # fmt: skip
    fields = request_fields(request)
    fields.pop("image")
    parameters = VideoParameters.model_validate(fields)
    assert parameters.to_request(REQUEST.image, ("style",)) == Request(
        **{name: getattr(request, name) for name in FIELDS} | {"image": REQUEST.image}
    )
    with pytest.raises(ConfigError, match="latent_paddings must be left as it is"):
        request_fields(Request(image="a.png", prompt="a", seconds=0.1, latent_paddings=(0,)))
