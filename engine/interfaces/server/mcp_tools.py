"""The service as tools of the Model Context Protocol, for assistants that run on the same machine."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

from anyio import to_thread
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from ...errors import IsoframeError
from ...jobs.state import JobState
from .http.schemas import DeletedVideo, ModelObject, VideoObject
from .videos.errors import FieldError, NotFinishedError
from .videos.parameters import VideoParameters
from .videos.pictures import decode_base64
from .videos.service import VideoService

_MAX_WAIT_SECONDS = 3600
_POLL_SECONDS = 0.2
_MAX_PAGE = 100
_INSTRUCTIONS = (
    "Makes videos of an image and a prompt, which takes seconds to minutes. create_video returns at once; wait_for_video "
    "waits, and its answer has the path of the MP4."
)
_VideoId = Annotated[str, Field(pattern="^video_[0-9a-f]{24}$", description="From create_video.")]
P = ParamSpec("P")
T = TypeVar("T")


class LocalVideo(VideoObject):
    """A video, and where it is."""

    path: str | None = Field(description="The MP4, once the status is completed, unless somebody removed it.")


def make_mcp_server(service: VideoService, image_folders: Sequence[Path]) -> "MCPServer[None]":
    """A server with one tool for every operation.

    Args:
        service: the videos.
        image_folders: an image may be named by its path in one of them.
    """
    server: MCPServer[None] = MCPServer("isoframe", instructions=_INSTRUCTIONS)
    for tool in _tools(service, [folder.resolve() for folder in image_folders]):
        server.tool()(_told(tool))
    server.tool()(_waiter(service))
    return server


def _tools(service: VideoService, folders: Sequence[Path]) -> tuple[Callable[..., object], ...]:
    """The operations that answer at once; an image may lie in one of ``folders``."""
    named = ", ".join(map(str, folders))
    places = f"the path of a file in {named}, or its content in base64" if folders else "its file in base64"

    def create_video(
        image: Annotated[str, Field(description=f"The image that the video starts from: {places}.")],
        video: VideoParameters,
    ) -> LocalVideo:
        """Start making a video of an image and a prompt; returns at once."""
        content = _image_bytes(image, folders, service.limits.upload_bytes)
        return _local(service, video.create(service, content).id)

    def describe_model() -> ModelObject:
        """The model that makes the videos, and its LoRAs."""
        return ModelObject.of(service.card)

    def get_video(video_id: _VideoId) -> LocalVideo:
        """How a video stands."""
        return _local(service, video_id)

    def list_videos(
        limit: Annotated[int, Field(ge=1, le=_MAX_PAGE)] = 20, after: _VideoId | None = None
    ) -> list[LocalVideo]:
        """The videos that are kept, the newest first; after: the last id of the page before."""
        return [_local(service, status.id) for status in service.page(after, limit)]

    def cancel_video(video_id: _VideoId) -> LocalVideo:
        """Stop making a video, after the step at hand."""
        service.cancel(video_id)
        return _local(service, video_id)

    def delete_video(video_id: _VideoId) -> DeletedVideo:
        """Remove a video and its files; one at work is cancelled."""
        service.delete(video_id)
        return DeletedVideo(id=video_id)

    return create_video, describe_model, get_video, list_videos, cancel_video, delete_video


def _waiter(service: VideoService) -> Callable[..., Awaitable[LocalVideo]]:
    async def wait_for_video(
        video_id: _VideoId,
        context: Context,
        seconds: Annotated[float, Field(gt=0, le=_MAX_WAIT_SECONDS)] = 600.0,
    ) -> LocalVideo:
        """Wait until a video is over, or that many seconds, and tell how it stands; reports progress meanwhile."""
        deadline, told = asyncio.get_running_loop().time() + seconds, -1
        look = _told(lambda: _local(service, video_id))
        while True:
            video = await to_thread.run_sync(look)
            if video.progress != told:
                told = video.progress
                await context.report_progress(told, 100, video.status)
            is_over = video.status not in ("queued", "in_progress")
            if is_over or asyncio.get_running_loop().time() > deadline:
                return video
            await asyncio.sleep(_POLL_SECONDS)

    return wait_for_video


def _told(function: Callable[P, T]) -> Callable[P, T]:
    """Have the assistant see the message of an expected error; of others it sees none."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except IsoframeError as error:
            raise ToolError(str(error)) from error

    return call


def _local(service: VideoService, name: str) -> LocalVideo:
    status = service.get(name)
    try:
        path = str(service.video_path(name)) if status.state is JobState.DONE else None
    except NotFinishedError:
        # Somebody removed the file: the video, and a list with it, can be told all the same.
        path = None
    return LocalVideo(**VideoObject.of(status).model_dump(), path=path)


def _image_bytes(image: str, folders: Sequence[Path], max_bytes: int) -> bytes:
    """The file in base64, or a file in one of ``folders``, where links do not lead out of them."""
    found = [path for folder in folders if (path := _inside(folder, image)) is not None]
    if not found:
        return decode_base64(image)
    try:
        # Before it is read: any file in the folder may be named.
        if found[0].stat().st_size > max_bytes:
            raise FieldError("image", f"image must have at most {max_bytes} bytes, {image} has more")
        return found[0].read_bytes()
    except OSError as error:
        raise FieldError("image", f"image {image} cannot be read: {error.strerror}") from error


def _inside(folder: Path, name: str) -> Path | None:
    try:
        path = (folder / name).resolve()
        return path if path.is_file() and path.is_relative_to(folder) else None
    except (OSError, ValueError):
        # Too long for a name, or with a zero byte: base64, or nothing.
        return None
