"""The tools that an assistant has, over memory and over a process's stdin and stdout."""

import base64
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from mcp import Client, StdioServerParameters, stdio_client
from video_server import SMALL, KeptWorkers, load, picture, small_limits

from isoframe.engine import Engine
from isoframe.engine.interfaces.server.mcp_tools import make_mcp_server
from isoframe.engine.interfaces.server.videos.service import VideoService
from isoframe.engine.media.video import read_video_info

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(tmp_path_factory.mktemp("cache")) as engine:
        yield engine


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "start.png").write_bytes(picture())
    (tmp_path / "secret.png").write_bytes(picture())
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    return folder


@pytest.fixture
def talk(engine: Engine, tmp_path: Path, images: Path) -> Iterator[Callable[..., Any]]:
    """Runs a function with a connected client."""
    with VideoService(KeptWorkers(engine), tmp_path / "data", limits=small_limits()) as service:
        server = make_mcp_server(service, [images])

        def run(function: Callable[[Client], Any]) -> Any:
            async def connected() -> Any:
                async with Client(server) as client:
                    return await function(client)

            return anyio.run(connected)

        yield run


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    """What a tool returns; the text of an error."""
    result = await client.call_tool(tool, arguments)
    if result.is_error:
        return result.content[0].text
    return result.structured_content


def test_a_video_is_made_of_a_file_in_an_allowed_folder(talk: Callable[..., Any]) -> None:
    async def make(client: Client) -> None:
        created = await call(client, "create_video", image="start.png", video=SMALL)
        assert created["status"] in ("queued", "in_progress")
        told: list[float] = []

        async def on_progress(progress: float, *_: Any) -> None:
            told.append(progress)

        arguments = {"video_id": created["id"], "seconds": 60}
        result = await client.call_tool("wait_for_video", arguments, progress_callback=on_progress)
        video = result.structured_content
        assert video is not None
        assert (video["status"], told[-1]) == ("completed", 100)
        assert read_video_info(Path(video["path"])).num_frames == 5
        assert (await call(client, "get_video", video_id=created["id"])) == video
        assert (await call(client, "list_videos"))["result"] == [video]
        assert (await call(client, "delete_video", video_id=created["id"]))["deleted"]
        assert not Path(video["path"]).exists()

    talk(make)


def test_a_video_whose_file_was_removed_is_listed_without_a_path(talk: Callable[..., Any]) -> None:
    async def remove(client: Client) -> None:
        created = await call(client, "create_video", image="start.png", video=SMALL)
        video = await call(client, "wait_for_video", video_id=created["id"])
        Path(video["path"]).unlink()
        without = {**video, "path": None}
        assert await call(client, "get_video", video_id=created["id"]) == without
        assert (await call(client, "list_videos"))["result"] == [without]

    talk(remove)


def test_base64_is_taken_and_a_video_can_be_cancelled(talk: Callable[..., Any]) -> None:
    async def cancel(client: Client) -> None:
        image = base64.b64encode(picture()).decode()
        long = {**SMALL, "seconds": 3.9, "num_steps": 100}
        created = await call(client, "create_video", image=image, video=long)
        await call(client, "cancel_video", video_id=created["id"])
        video = await call(client, "wait_for_video", video_id=created["id"])
        assert (video["status"], video["path"]) == ("cancelled", None)
        assert (await call(client, "describe_model"))["id"] == "demo"

    talk(cancel)


def test_a_file_that_is_larger_than_an_image_may_be_is_not_read(
    talk: Callable[..., Any], images: Path
) -> None:
    with (images / "huge.png").open("wb") as file:
        # All of it hole: it takes no room, but nobody has the memory for it.
        file.truncate(2**42)

    async def ask(client: Client) -> None:
        answer = await call(client, "create_video", image="huge.png", video=SMALL)
        assert "image must have at most 1048576 bytes, huge.png has more" in answer

    talk(ask)


def test_files_elsewhere_are_not_read_and_errors_are_told(
    talk: Callable[..., Any], tmp_path: Path, images: Path
) -> None:
    hostile = (
        "../secret.png",
        str(tmp_path / "secret.png"),
        "link.png",
        "/etc/passwd",
        "a\x00b",
        "x" * 5000,
        "",
    )

    async def ask(client: Client) -> None:
        for image in hostile:
            answer = await call(client, "create_video", image=image, video=SMALL)
            assert isinstance(answer, str), image
            assert "image must be" in answer, answer
        assert "seconds must be at most 4" in await call(
            client, "create_video", image="start.png", video={**SMALL, "seconds": 5}
        )
        assert "model must be demo" in await call(
            client, "create_video", image="start.png", video={**SMALL, "model": "x"}
        )
        assert "prompt" in await call(client, "create_video", image="start.png", video={})
        assert "there is no video" in await call(client, "get_video", video_id="video_" + "0" * 24)
        assert "there is no video" in await call(client, "wait_for_video", video_id="video_" + "0" * 24)

    talk(ask)
    assert list((tmp_path / "data" / "jobs").iterdir()) == []


@pytest.mark.slow
def test_the_command_talks_over_stdin_and_stdout_and_ends_with_them(tmp_path: Path, images: Path) -> None:
    @asynccontextmanager
    async def connected() -> AsyncIterator[Client]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT / ".src"), "OMP_NUM_THREADS": "1"}
        arguments = [
            "-P",
            "-m",
            "isoframe.engine.interfaces.commands",
            "mcp",
            "--images",
            str(images),
            "--device",
            "cpu",
        ]
        parameters = StdioServerParameters(
            command=sys.executable,
            args=[*arguments, "--cache-dir", str(tmp_path / "cache")],
            env=environment,
        )
        async with Client(stdio_client(parameters)) as client:
            yield client

    async def make() -> None:
        async with connected() as client:
            assert len((await client.list_tools()).tools) == 7
            created = await call(client, "create_video", image="start.png", video=SMALL)
            video = await call(client, "wait_for_video", video_id=created["id"])
            assert video["status"] == "completed"
            assert Path(video["path"]).is_relative_to(tmp_path / "cache" / "mcp")

    anyio.run(make)
