"""The operations of /v1/videos."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from ..videos.errors import FieldError, NotFinishedError
from ..videos.service import VideoService
from .event_stream import event_stream
from .problems import problems
from .schemas import DeletedVideo, RedoBody, VideoList, VideoObject
from .uploads import FORM, JSON, Upload, receive_upload

_MAX_PAGE = 100
_VideoId = Annotated[str, Path(pattern="^video_[0-9a-f]{24}$", description="Of the video.")]

_BODIES = {
    JSON: {"schema": {"$ref": "#/components/schemas/VideoBody"}},
    FORM: {"schema": {"$ref": "#/components/schemas/VideoForm"}},
}


class _Events(EventSourceResponse):
    # The document would have the problems of this operation be events too.
    media_type = None  # type: ignore[assignment]  # Response allows it, its class for events does not


def make_router(service: VideoService) -> APIRouter:
    """The operations on ``service``."""
    router = APIRouter(prefix="/v1/videos", tags=["videos"], responses=problems(401, 403, 404, 422))
    _add_create(router, service)
    _add_queries(router, service)
    _add_changes(router, service)
    _add_files(router, service)
    return router


def _add_create(router: APIRouter, service: VideoService) -> None:
    # Decoding an image takes much memory: one at a time.
    limiter = CapacityLimiter(1)

    def submit(upload: Upload, key: str | None) -> VideoObject:
        parameters, content = upload.parse()
        return VideoObject.of(parameters.create(service, content, key))

    @router.post(
        "",
        status_code=201,
        responses=problems(400, 408, 413, 415, 429, 503, 507),
        openapi_extra={"requestBody": {"required": True, "content": _BODIES}},
    )
    async def create_video(
        request: Request,
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=1, max_length=255, pattern="^[!-~]+$",
                description="Of the client's own; the same request with it once more, also after a restart, has the same video.",
            ),
        ] = None,
    ) -> VideoObject:  # fmt: skip
        """Have a video made of an image and a prompt."""
        upload = await receive_upload(request)
        return await to_thread.run_sync(submit, upload, idempotency_key, limiter=limiter)


def _add_queries(router: APIRouter, service: VideoService) -> None:
    @router.get("")
    def list_videos(
        after: Annotated[
            str | None, Query(pattern="^video_[0-9a-f]{24}$", description="Id of a video.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=_MAX_PAGE)] = 20,
        order: Annotated[str, Query(pattern="^(asc|desc)$", description="desc: the newest first.")] = "desc",
    ) -> VideoList:
        """The videos that are kept, a page at a time."""
        found = service.page(after, limit + 1, is_oldest_first=order == "asc")
        data = [VideoObject.of(status) for status in found[:limit]]
        return VideoList(
            data=data,
            first_id=data[0].id if data else None,
            last_id=data[-1].id if data else None,
            has_more=len(found) > limit,
        )

    @router.get("/{video_id}")
    def get_video(video_id: _VideoId) -> VideoObject:
        """How a video stands."""
        return VideoObject.of(service.get(video_id))


def _add_changes(router: APIRouter, service: VideoService) -> None:
    @router.post("/{video_id}/cancel")
    def cancel_video(video_id: _VideoId) -> VideoObject:
        """Stop making a video, after the step at hand; one that is over stays as it is."""
        return VideoObject.of(service.cancel(video_id))

    @router.post("/{video_id}/pause")
    def pause_video(video_id: _VideoId) -> VideoObject:
        """Stop making a video, after the step at hand, until it is resumed; one that is over stays as it is."""
        return VideoObject.of(service.pause(video_id))

    @router.post("/{video_id}/resume", responses=problems(429, 507))
    def resume_video(video_id: _VideoId) -> VideoObject:
        """Go on with a video that was paused or cancelled, or failed, from its last finished section."""
        return VideoObject.of(service.resume(video_id))

    @router.post(
        "/{video_id}/redo",
        status_code=201,
        responses=problems(400, 408, 409, 413, 429, 507),
    )
    def redo_video(video_id: _VideoId, body: RedoBody) -> VideoObject:
        """Make a section and all later ones again, with another seed or prompt, as a new video."""
        status = service.get(video_id)
        if status.state.is_under_way:
            raise NotFinishedError(f"the video is {status.state}; pause it, or wait until it is done")
        # The message of a job counts sections from 1.
        if body.section >= status.num_sections:
            raise FieldError(
                "section", f"section must be from 0 to {status.num_sections - 1}, got {body.section}"
            )
        return VideoObject.of(service.redo(video_id, body.section, seed=body.seed, prompt=body.prompt))

    @router.delete("/{video_id}")
    def delete_video(video_id: _VideoId) -> DeletedVideo:
        """Remove a video and its files; one at work is cancelled."""
        service.delete(video_id)
        return DeletedVideo(id=video_id)


def _add_files(router: APIRouter, service: VideoService) -> None:
    @router.get(
        "/{video_id}/content",
        response_class=FileResponse,
        responses={
            200: _file("video/mp4"),
            206: {"description": "The part that the header Range asks for."},
            400: {"description": "The header Range is malformed."},
            416: {"description": "The file has no such part."},
            **problems(409),
        },
    )
    def download_video(video_id: _VideoId) -> FileResponse:
        """The MP4; parts of it with the header Range."""
        return FileResponse(service.video_path(video_id), media_type="video/mp4", filename=f"{video_id}.mp4")

    @router.get(
        "/{video_id}/previews/{section}",
        response_class=FileResponse,
        responses={200: _file("image/png"), **problems(409)},
    )
    def get_preview(video_id: _VideoId, section: Annotated[int, Path(ge=0, le=100_000)]) -> FileResponse:
        """The latest picture of a section, by its place in the order of making."""
        return FileResponse(service.preview_path(video_id, section), media_type="image/png")

    def check_known(video_id: _VideoId) -> None:
        # Before the answer begins.
        service.get(video_id)

    @router.get(
        "/{video_id}/events",
        response_class=_Events,
        dependencies=[Depends(check_known)],
    )
    async def follow_video(
        video_id: _VideoId,
        last_event_id: Annotated[str | None, Header(max_length=64, description="Goes on after it.")] = None,
    ) -> AsyncIterator[ServerSentEvent]:
        """What has happened and what happens, as Server-Sent Events whose data is JSON; the last one is the video."""
        async for event in event_stream(service, video_id, last_event_id):
            yield event


def _file(kind: str) -> dict[str, Any]:
    return {"content": {kind: {"schema": {"type": "string", "format": "binary"}}}}
