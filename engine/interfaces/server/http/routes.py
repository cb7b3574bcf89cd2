"""The operations of /v1/videos."""

from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Header, Path, Query, Request
from fastapi.responses import FileResponse, StreamingResponse

from ..videos.errors import FieldError, NotFinishedError
from ..videos.live_job import EventKey
from ..videos.pictures import read_picture
from ..videos.service import VideoService
from .event_stream import event_stream
from .problems import PROBLEM_RESPONSES
from .schemas import DeletedVideo, Problem, RedoBody, VideoList, VideoObject
from .uploads import FORM, JSON, Upload, receive_upload

_MAX_PAGE = 100
_VideoId = Annotated[str, Path(pattern="^video_[0-9a-f]{24}$", description="Of the video.")]
_EVENT_SCHEMA = {
    "type": "object",
    "description": "One of the events; its data is JSON. The last one is the event video, with the whole of it.",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
    "required": ["event", "data"],
}
_CREATE_PROBLEMS = {
    400: "The body is broken.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    415: "The body is neither JSON nor a form.",
    429: "The queue is full; Retry-After says when to try again.",
    507: "The server's disk is full.",
}


_QUEUE_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem, "description": _CREATE_PROBLEMS[code]} for code in (429, 507)
}
_BODY_PROBLEMS: dict[int | str, dict[str, Any]] = {
    code: {"model": Problem, "description": _CREATE_PROBLEMS[code]} for code in (400, 408, 413)
}
_NOT_FINISHED: dict[int | str, dict[str, Any]] = {
    409: {"model": Problem, "description": "It is not there, or not yet."}
}


def make_router(service: VideoService) -> APIRouter:
    """The operations on ``service``."""
    router = APIRouter(prefix="/v1", responses=PROBLEM_RESPONSES)
    _add_create(router, service)
    _add_queries(router, service)
    _add_changes(router, service)
    _add_files(router, service)
    return router


def _add_create(router: APIRouter, service: VideoService) -> None:
    # Decoding an image takes much memory: one at a time.
    limiter = CapacityLimiter(1)

    def submit(upload: Upload) -> VideoObject:
        parameters, content = upload.parse()
        if parameters.model not in (None, service.card.name):
            raise FieldError("model", f"model must be {service.card.name}, got {parameters.model!r}")
        request = parameters.to_request(read_picture(content, service.limits), service.card.loras)
        return VideoObject.of(
            service.create(request, priority=parameters.priority, has_previews=parameters.previews)
        )

    @router.post(
        "/videos",
        status_code=201,
        tags=["videos"],
        responses={code: {"model": Problem, "description": text} for code, text in _CREATE_PROBLEMS.items()},
        openapi_extra={"requestBody": _request_body()},
    )
    async def create_video(request: Request) -> VideoObject:
        """Have a video made of an image and a prompt."""
        upload = await receive_upload(request)
        return await to_thread.run_sync(submit, upload, limiter=limiter)


def _add_queries(router: APIRouter, service: VideoService) -> None:
    @router.get("/videos", tags=["videos"])
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

    @router.get("/videos/{video_id}", tags=["videos"])
    def get_video(video_id: _VideoId) -> VideoObject:
        """How a video stands."""
        return VideoObject.of(service.get(video_id))


def _add_changes(router: APIRouter, service: VideoService) -> None:
    @router.post("/videos/{video_id}/cancel", tags=["videos"])
    def cancel_video(video_id: _VideoId) -> VideoObject:
        """Stop making a video, after the step at hand; one that is over stays as it is."""
        return VideoObject.of(service.cancel(video_id))

    @router.post("/videos/{video_id}/pause", tags=["videos"])
    def pause_video(video_id: _VideoId) -> VideoObject:
        """Stop making a video, after the step at hand, until it is resumed; one that is over stays as it is."""
        return VideoObject.of(service.pause(video_id))

    @router.post("/videos/{video_id}/resume", tags=["videos"], responses=_QUEUE_PROBLEMS)
    def resume_video(video_id: _VideoId) -> VideoObject:
        """Go on with a video that was paused or cancelled, or failed, from its last finished section."""
        return VideoObject.of(service.go_on(video_id))

    @router.post(
        "/videos/{video_id}/redo",
        status_code=201,
        tags=["videos"],
        responses=_QUEUE_PROBLEMS | _BODY_PROBLEMS | _NOT_FINISHED,
    )
    def redo_video(video_id: _VideoId, body: RedoBody) -> VideoObject:
        """Make a section and all later ones again, with another seed or prompt, as a new video."""
        status = service.get(video_id)
        if status.state in ("queued", "running"):
            raise NotFinishedError(f"the video is {status.state}; pause it, or wait until it is done")
        # The message of a job counts sections from 1.
        if body.section >= status.num_sections:
            raise FieldError(
                "section", f"section must be from 0 to {status.num_sections - 1}, got {body.section}"
            )
        return VideoObject.of(service.redo(video_id, body.section, seed=body.seed, prompt=body.prompt))

    @router.delete("/videos/{video_id}", tags=["videos"])
    def delete_video(video_id: _VideoId) -> DeletedVideo:
        """Remove a video and its files; one at work is cancelled."""
        service.delete(video_id)
        return DeletedVideo(id=video_id)


def _add_files(router: APIRouter, service: VideoService) -> None:
    @router.get(
        "/videos/{video_id}/content",
        tags=["videos"],
        response_class=FileResponse,
        responses={
            200: {"content": {"video/mp4": {"schema": {"type": "string", "format": "binary"}}}},
            206: {"description": "The part that the header Range asks for."},
            400: {"description": "The header Range is malformed."},
            416: {"description": "The file has no such part."},
            **_NOT_FINISHED,
        },
    )
    def download_video(video_id: _VideoId) -> FileResponse:
        """The MP4; parts of it with the header Range."""
        return FileResponse(service.video_path(video_id), media_type="video/mp4", filename=f"{video_id}.mp4")

    @router.get(
        "/videos/{video_id}/previews/{section}",
        tags=["videos"],
        response_class=FileResponse,
        responses={
            200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}},
            **_NOT_FINISHED,
        },
    )
    def get_preview(video_id: _VideoId, section: Annotated[int, Path(ge=0, le=100_000)]) -> FileResponse:
        """The latest picture of a section, by its place in the order of making."""
        return FileResponse(service.preview_path(video_id, section), media_type="image/png")

    @router.get(
        "/videos/{video_id}/events",
        tags=["videos"],
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": _EVENT_SCHEMA}}}},
    )
    def follow_video(
        video_id: _VideoId,
        last_event_id: Annotated[str | None, Header(max_length=64, description="Goes on after it.")] = None,
    ) -> StreamingResponse:
        """What has happened and what happens, as Server-Sent Events; the last one is the video."""
        service.get(video_id)
        after = None if last_event_id is None else EventKey.parse(last_event_id)
        stream = event_stream(service, video_id, after)
        return StreamingResponse(
            stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )


def _request_body() -> dict[str, object]:
    json_body = {"$ref": "#/components/schemas/VideoBody"}
    form = {"$ref": "#/components/schemas/VideoForm"}
    return {"required": True, "content": {JSON: {"schema": json_body}, FORM: {"schema": form}}}
