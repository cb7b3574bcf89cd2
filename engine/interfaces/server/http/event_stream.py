"""Events of a job as Server-Sent Events."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator

from anyio import to_thread
from fastapi.sse import ServerSentEvent

from ....events import CancelledEvent, FailureEvent, JobEvent, PreviewEvent
from ....jobs.log import LogEntry
from ..videos.errors import UnknownVideoError
from ..videos.service import VideoService
from .schemas import VideoObject

_POLL_SECONDS = 0.1
# Tensors, and where things lie on the server.
_HIDDEN_FIELDS = ("x0", "path", "job_dir", "notes", "exit_code")


async def event_stream(service: VideoService, name: str, after: str | None) -> AsyncIterator[ServerSentEvent]:
    """What happens to a video until it is over, then the event "video" with the whole of it.

    The stream ends without that event where the server stops: the client asks again with the last id.
    """
    while not service.is_closing:
        try:
            entries, last = await to_thread.run_sync(_look, service, name, after)
        except UnknownVideoError:
            # Deleted meanwhile.
            return
        for after, entry in entries:
            if isinstance(entry.event, CancelledEvent) and service.is_closing:
                return
            kind = type(entry.event).__name__.removesuffix("Event").lower()
            yield ServerSentEvent(event=kind, data=_values(entry, name), id=after)
        if last is not None:
            yield ServerSentEvent(event="video", data=last)
            return
        await asyncio.sleep(_POLL_SECONDS)


def _look(
    service: VideoService, name: str, after: str | None
) -> tuple[list[tuple[str, LogEntry]], VideoObject | None]:
    """What is new; the video too once its end is kept. A failure waits for that: it says the same."""
    entries, is_over = service.events(name, after)
    status = service.get(name)
    if entries and isinstance(event := entries[-1][1].event, FailureEvent):
        key, entry = entries.pop()
        if status.failure is None:
            return entries, None
        event = dataclasses.replace(event, error=status.failure.error, message=status.failure.message)
        entries.append((key, dataclasses.replace(entry, event=event)))
    return entries, VideoObject.of(status) if is_over and status.state.is_over else None


def _values(entry: LogEntry, name: str) -> dict[str, object]:
    event = entry.event
    # Those of a job say what of a request changes nothing, those of an end where its files are.
    shown = ("notes",) if isinstance(event, JobEvent) else ()
    hidden = set(_HIDDEN_FIELDS).difference(shown)
    names = [field.name for field in dataclasses.fields(event) if field.name not in hidden]
    values = {field: getattr(event, field) for field in names}
    if isinstance(event, PreviewEvent):
        values["url"] = f"/v1/videos/{name}/previews/{event.section}"
    timing = {
        "index": entry.index,
        "elapsed_seconds": entry.seconds,
        "seconds_left": entry.seconds_left,
        "video_seconds": entry.video_seconds,
    }
    return timing | values
