"""Videos over HTTP: made, followed, downloaded, cancelled, deleted; who may ask."""

import base64
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from video_server import SMALL, Answer, Asker, KeptWorkers, form, load, picture, serving, small_limits

from isoframe.engine import ConfigError, Engine, InputError, Request
from isoframe.engine.interfaces.server.http.guard import Access
from isoframe.engine.interfaces.server.http.listening import bind
from isoframe.engine.interfaces.server.videos.service import VideoService
from isoframe.engine.media.video import read_video_info

KEY = "0123456789abcdef0123"
LONG = {"seconds": 3.9, "num_steps": 100}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(tmp_path_factory.mktemp("cache")) as engine:
        yield engine


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def ask(engine: Engine, folder: Path) -> Iterator[Asker]:
    """One server for all tests that leave no video at work."""
    service = VideoService(KeptWorkers(engine), folder, max_queued=2, limits=small_limits())
    with serving(service) as ask:
        yield ask


def test_a_form_becomes_a_video(ask: Asker, tmp_path: Path) -> None:
    created = ask.send_form(SMALL, picture())
    assert created.status == 201
    assert created.json["status"] in ("queued", "in_progress")
    video = ask.wait(created.json["id"])
    assert (video["status"], video["progress"], video["num_finished_sections"]) == ("completed", 100, 1)
    assert (video["num_frames"], video["fps"], video["height"], video["error"]) == (5, 30, 64, None)
    answer = ask("GET", f"/v1/videos/{video['id']}/content")
    assert (answer.status, answer.headers["content-type"]) == (200, "video/mp4")
    (tmp_path / "video.mp4").write_bytes(answer.content)
    assert read_video_info(tmp_path / "video.mp4").num_frames == 5


def test_json_with_base64_or_a_data_url_becomes_the_same_video(ask: Asker) -> None:
    encoded = base64.b64encode(picture()).decode()
    texts = (encoded, f"data:image/png;base64,{encoded}")
    names = [ask.send_json({**SMALL, "image": text}).json["id"] for text in texts] + [ask.make()]
    assert [ask.wait(name)["status"] for name in names] == ["completed"] * 3
    first, second, of_form = (ask("GET", f"/v1/videos/{name}/content").content for name in names)
    assert first == second == of_form


def test_a_range_of_the_file_can_be_had(ask: Asker) -> None:
    name = ask.make()
    ask.wait(name)
    path = f"/v1/videos/{name}/content"
    whole = ask("GET", path).content
    part = ask("GET", path, headers={"Range": "bytes=10-19"})
    assert (part.status, part.headers["content-range"]) == (206, f"bytes 10-19/{len(whole)}")
    assert part.content == whole[10:20]
    assert ask("GET", path, headers={"Range": "bytes=-7"}).content == whole[-7:]
    assert ask("GET", path, headers={"Range": f"bytes={len(whole)}-"}).status == 416


def test_events_are_numbered_and_go_on_where_a_reader_was(ask: Asker) -> None:
    name = ask.make(seconds=0.3, num_steps=2, previews=True)
    events = ask.events(name)
    *logged, last = events
    assert [event["index"] for event in logged] == list(range(len(logged)))
    assert [logged[0]["kind"], logged[1]["kind"], logged[-1]["kind"]] == ["queued", "started", "done"]
    assert (last["kind"], last["status"], last["id"]) == ("video", "completed", name)
    steps = [event for event in logged if event["kind"] == "step"]
    assert [(step["section"], step["step"]) for step in steps] == [(s, k) for s in range(2) for k in range(2)]
    assert ask.events(name, logged[4]["id"]) == events[5:]
    # A key of another run of the server means nothing to this one.
    assert ask.events(name, "0a1b2c3d-4") == events
    assert ask.events(name, "nonsense") == events
    preview = next(event for event in logged if event["kind"] == "preview")
    picture = ask("GET", preview["url"])
    assert picture.content.startswith(b"\x89PNG")
    assert ask("GET", f"/v1/videos/{name}/previews/7").status == 409


def test_no_answer_tells_where_files_lie_on_the_server(ask: Asker, folder: Path) -> None:
    name = ask.make()
    texts = [json.dumps(ask.events(name)), *(ask("GET", path).content.decode() for path in (
        f"/v1/videos/{name}", "/v1/videos", "/v1/models", "/metrics", "/openapi.json",
    ))]  # fmt: skip
    assert [text for text in texts if str(folder) in text or "/tmp" in text] == []


def test_videos_are_listed_in_pages(ask: Asker) -> None:
    names = [ask.make() for _ in range(3) if ask.wait(ask.make())]
    newest = ask("GET", "/v1/videos?limit=2").json
    assert (newest["first_id"], newest["has_more"]) == (names[-1], True)
    following = ask("GET", f"/v1/videos?limit=100&after={newest['last_id']}").json
    listed = [video["id"] for page in (newest, following) for video in page["data"]]
    assert len(set(listed)) == len(listed) >= 5
    oldest = ask("GET", "/v1/videos?order=asc&limit=100").json
    assert [video["id"] for video in oldest["data"]] == listed[::-1]
    for name in names:
        ask.wait(name)


def test_a_video_is_cancelled_within_a_step_and_stays_so(ask: Asker) -> None:
    name = ask.make(**LONG)
    ask.wait(name, until=lambda video: video["progress"] > 0)
    assert ask("GET", f"/v1/videos/{name}/content").status == 409
    assert ask("POST", f"/v1/videos/{name}/cancel").status == 200
    video = ask.wait(name)
    assert (video["status"], video["error"]) == ("cancelled", None)
    assert 0 < video["progress"] < 100
    again = ask("POST", f"/v1/videos/{name}/cancel")
    assert (again.status, again.json["status"]) == (200, "cancelled")


def test_a_video_is_paused_resumed_and_made_again_from_a_section(ask: Asker) -> None:
    name = ask.make(seconds=0.8, num_steps=20)
    ask.wait(name, until=lambda video: video["num_finished_sections"] > 0)
    early = ask(
        "POST", f"/v1/videos/{name}/redo", b'{"section": 1, "seed": 7}', {"Content-Type": "application/json"}
    )
    assert (early.status, early.field) == (409, "video_id")
    assert ask("POST", f"/v1/videos/{name}/pause").status == 200
    assert ask.wait(name, until=lambda video: video["status"] != "in_progress")["status"] == "paused"
    assert ask("POST", f"/v1/videos/{name}/resume").json["status"] in ("queued", "in_progress")
    assert ask.wait(name)["status"] == "completed"
    again = ask(
        "POST", f"/v1/videos/{name}/redo", b'{"section": 4, "seed": 7}', {"Content-Type": "application/json"}
    )
    assert again.status == 201
    assert ask.wait(again.json["id"])["status"] == "completed"
    contents = [ask("GET", f"/v1/videos/{video}/content").content for video in (name, again.json["id"])]
    assert contents[0] != contents[1]
    for body, field in (
        ({"section": 4}, "seed"),
        ({"section": 99, "seed": 1}, "section"),
        ({"seed": 1}, "section"),
    ):
        refused = ask(
            "POST", f"/v1/videos/{name}/redo", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        assert (refused.status, refused.field) == (422, field)
        if body.get("section") == 99:
            number = ask("GET", f"/v1/videos/{name}").json["num_sections"]
            assert refused.json["error"]["message"] == f"section must be from 0 to {number - 1}, got 99"


@pytest.mark.parametrize("moment", ["queued", "running", "done"])
def test_a_deleted_video_leaves_no_file(ask: Asker, folder: Path, moment: str) -> None:
    first = ask.make(**LONG) if moment == "queued" else None
    name = ask.make(**(LONG if moment == "running" else {}))
    if moment == "running":
        ask.wait(name, until=lambda video: video["progress"] > 0)
    if moment == "done":
        ask.wait(name)
    assert ask("DELETE", f"/v1/videos/{name}").json == {
        "id": name,
        "object": "video.deleted",
        "deleted": True,
    }
    assert ask("GET", f"/v1/videos/{name}").status == 404
    assert ask("DELETE", f"/v1/videos/{name}").status == 404
    if first is not None:
        ask("DELETE", f"/v1/videos/{first}")
    # Jobs run one after the other: that one ends after the deleted one.
    ask.wait(ask.make())
    assert not (folder / "jobs" / name).exists()


def test_a_full_queue_says_when_to_come_again(ask: Asker) -> None:
    names = [ask.make(**LONG)]
    ask.wait(names[0], until=lambda video: video["status"] == "in_progress")
    names += [ask.make(), ask.make()]
    refused = ask.send_form(SMALL, picture())
    assert (refused.status, refused.field) == (429, "queue")
    assert int(refused.headers["retry-after"]) >= 1
    for name in names:
        ask("POST", f"/v1/videos/{name}/cancel")
    assert {ask.wait(name)["status"] for name in names} == {"cancelled"}
    assert ask.wait(ask.make())["status"] == "completed"


def test_the_model_and_metrics_are_told(ask: Asker) -> None:
    ask.wait(ask.make())
    (model,) = ask("GET", "/v1/models").json["data"]
    assert (model["id"], model["device"], model["precision"], model["sizes"]) == (
        "demo",
        "cpu",
        "fp32",
        [[64, 64]],
    )
    assert ask.send_form({**SMALL, "model": "other"}, picture()).field == "model"
    text = ask("GET", "/metrics").content.decode()
    assert 'isoframe_videos{state="done"}' in text
    assert 'isoframe_http_requests_total{method="POST",route="/v1/videos",status="201"}' in text
    ask("GET", "/made-up-by-a-client")
    assert "made-up-by-a-client" not in ask("GET", "/metrics").content.decode()


def test_the_document_has_both_bodies(ask: Asker) -> None:
    document = ask("GET", "/openapi.json").json
    schemas = document["components"]["schemas"]
    assert (
        set(schemas["VideoForm"]["required"]) == set(schemas["VideoBody"]["required"]) == {"image", "prompt"}
    )


def test_the_page_on_the_operations_loads_nothing_from_elsewhere(ask: Asker) -> None:
    page = ask("GET", "/docs")
    text = page.content.decode()
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for path, methods in ask("GET", "/openapi.json").json["paths"].items():
        for method in methods:
            assert f"<h2><b>{method.upper()}</b> {path}</h2>" in text
    assert "latent_window_size" in text
    assert not {"<script", "<link", "src=", "http://", "https://"} & set(
        re.findall(r"<script|<link|src=|https?://", text)
    )
    assert page.headers["content-security-policy"].startswith("default-src 'none'")


def test_another_site_cannot_ask_without_being_allowed(ask: Asker, engine: Engine, tmp_path: Path) -> None:
    page = {"Origin": "https://elsewhere.example"}
    refused = ask("POST", "/v1/videos", b"{}", {**page, "Content-Type": "application/json"})
    assert (refused.status, refused.field) == (403, "origin")
    # The name that a page's owner has point to this machine.
    rebound = ask("GET", "/v1/videos", headers={"Host": f"elsewhere.example:{ask.port}"})
    assert (rebound.status, rebound.field) == (403, "host")
    assert ask("GET", "/v1/videos", headers={"Origin": ask.url}).status == 200
    assert "access-control-allow-origin" not in ask("GET", "/v1/videos").headers
    access = Access(origins=("https://elsewhere.example",))
    with serving(VideoService(KeptWorkers(engine), tmp_path), access) as other:
        answer = other("GET", "/v1/videos", headers=page)
        assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, page["Origin"])
        asked = {**page, "Access-Control-Request-Method": "DELETE"}
        assert other("OPTIONS", "/v1/videos", headers=asked).status == 200


def test_with_a_key_only_who_knows_it_may_ask(engine: Engine, tmp_path: Path) -> None:
    service = VideoService(KeptWorkers(engine), tmp_path)
    with serving(service, Access(host="0.0.0.0", api_key=KEY)) as ask:
        stranger = Asker(ask.url)
        for wrong in (
            {},
            {"Authorization": f"Bearer {KEY}x"},
            {"Authorization": KEY},
            {"Authorization": "Bearer"},
        ):
            for method, path in (("GET", "/v1/videos"), ("GET", "/metrics"), ("GET", "/v1/nothing")):
                answer = stranger(method, path, headers=wrong)
                assert (answer.status, answer.field) == (401, "authorization")
            # Nothing of a body is read before.
            assert stranger("POST", "/v1/videos", b"x" * 100, wrong).status == 401
        assert stranger("GET", "/healthz").status == 200
        assert stranger("GET", "/openapi.json").json["security"] == [{"key": []}]
        assert ask("GET", "/v1/videos").status == 200
        assert ask("GET", "/v1/videos", headers={"Host": "server.example"}).status == 200


def test_a_server_for_others_needs_a_key_that_cannot_be_guessed() -> None:
    with pytest.raises(ConfigError, match="host must be a loopback address"):
        Access(host="0.0.0.0")
    with pytest.raises(ConfigError, match="api_key must have at least 16 characters, got 3"):
        Access(api_key="abc")


def test_a_port_that_is_taken_is_told() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(InputError, match="choose another --port"),
    ):
        bind("127.0.0.1", taken.getsockname()[1])


def send_all_then_read(ask: Asker, head: str, body: bytes) -> bytes:
    """What a client sees that sends its whole body before it looks for an answer."""
    with socket.create_connection((ask.host, ask.port or 0), timeout=60) as connection:
        connection.sendall(
            f"{head}\r\nHost: {ask.host}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        return connection.recv(4096)


def test_early_refusals_reach_a_client_that_sends_its_whole_body_first(
    engine: Engine, tmp_path: Path
) -> None:
    service = VideoService(KeptWorkers(engine), tmp_path, limits=small_limits())
    large, kind = bytes(30 * 2**20), "\r\nContent-Type: application/json"
    with serving(service, Access(api_key=KEY)) as ask:
        known = f"{kind}\r\nAuthorization: Bearer {KEY}"
        for path, head, status in (
            ("/v1/videos", kind, 401),
            ("/v1/videos", f"{known}\r\nOrigin: https://elsewhere.example", 403),
            ("/v1/videos", known, 413),
            ("/v1/videos", known.replace("json", "xml"), 415),
            ("/v1/nothing", known, 404),
            ("/metrics", known, 405),
        ):
            answer = send_all_then_read(ask, f"POST {path} HTTP/1.1{head}", large)
            assert answer.startswith(f"HTTP/1.1 {status} ".encode()), (path, head)


def test_bytes_under_upload_are_bounded_over_all_connections(engine: Engine, tmp_path: Path) -> None:
    limits = small_limits()
    most = limits.upload_bytes * 4 // 3 + 2**20
    service = VideoService(KeptWorkers(engine), tmp_path, limits=limits)
    with serving(service) as ask, ExitStack() as stack:
        head = f"POST /v1/videos HTTP/1.1\r\nHost: {ask.host}\r\nContent-Type: application/json\r\n"
        open_ones = [
            stack.enter_context(socket.create_connection((ask.host, ask.port or 0), timeout=60))
            for _ in range(6)
        ]
        for connection in open_ones:
            connection.sendall(f"{head}Content-Length: {most}\r\n\r\n".encode())
            connection.sendall(bytes(most - 1000))
        answers = []
        for connection in open_ones:
            connection.settimeout(1)
            with suppress(TimeoutError):
                answers.append(connection.recv(4096))
        assert len(answers) in (1, 2)
        assert all(answer.startswith(b"HTTP/1.1 503") and b"retry-after: 5" in answer for answer in answers)
        for connection in open_ones:
            connection.close()
        deadline = time.monotonic() + 10
        while (status := ask.send_form(SMALL, picture()).status) == 503 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert status == 201


def test_the_same_key_is_the_same_video_also_after_a_restart(engine: Engine, tmp_path: Path) -> None:
    body, kind = form(SMALL, {"image": picture()})
    other, other_kind = form({**SMALL, "seed": 7}, {"image": picture()})

    def create(ask: Asker, body: bytes, kind: str, key: str) -> Answer:
        return ask("POST", "/v1/videos", body, {"Content-Type": kind, "Idempotency-Key": key})

    for _ in range(2):
        with serving(VideoService(KeptWorkers(engine), tmp_path)) as ask:
            names = [create(ask, body, kind, "a-1").json["id"] for _ in range(2)]
            names += [video["id"] for video in ask("GET", "/v1/videos").json["data"]]
            assert len(set(names)) == 1
            refused = create(ask, other, other_kind, "a-1")
            assert (refused.status, refused.field) == (422, "idempotency-key")
            assert create(ask, body, kind, "no spaces").status == 422
            ask.wait(names[0])
    with serving(VideoService(KeptWorkers(engine), tmp_path)) as ask:
        assert ask("DELETE", f"/v1/videos/{names[0]}").status == 200
        again = create(ask, body, kind, "a-1")
        assert again.status == 201
        assert again.json["id"] != names[0]
        ask.wait(again.json["id"])


def test_data_and_records_are_for_this_user_alone(ask: Asker, folder: Path) -> None:
    name = ask.make()
    ask.wait(name)
    path = folder / "jobs" / name
    folders = [folder, folder / "jobs", path, path / "service"]
    assert [oct(one.stat().st_mode & 0o777) for one in folders] == ["0o700"] * 4
    records = [path / "job.json", path / "image.png", path / "service" / "asked.json"]
    assert [oct(one.stat().st_mode & 0o777) for one in records] == ["0o600"] * 3
    # What is made for others to have follows the umask.
    mask = os.umask(0)
    os.umask(mask)
    assert (path / "video.mp4").stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_full_queue_tells_when_there_will_be_room(engine: Engine, tmp_path: Path) -> None:
    with VideoService(KeptWorkers(engine), tmp_path) as service:
        assert service.retry_seconds() == 5
        status = service.wait(service.create(Request(image=Image.new("RGB", (64, 64)), **SMALL)).id)
        entry = service._videos[status.id]
        entry.end(replace(entry.status(), created=1000.0, ended=1042.0))
        assert service.retry_seconds() == 42
