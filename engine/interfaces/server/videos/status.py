"""What a service tells of a video."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ....jobs.state import JobState

if TYPE_CHECKING:
    from ....jobs.folder import JobFolder
    from ....jobs.run import Redo


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFailure:
    """Why a video was not made.

    Attributes:
        error: name of the exception's class.
        message: what went wrong, and the remedy.
    """

    error: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoStatus:
    """One video of a service.

    Attributes:
        id: its name.
        state: any but STOPPED.
        created: seconds since 1970.
        ended: seconds since 1970; None while it is queued or runs.
        model: that makes it.
        prompt: as asked for.
        order: "inverted" (the end of the video is made first) or "forward".
        seed: of the noise.
        redos: what was made again, in order of the sections.
        seconds: length of the video.
        fps: frames per second.
        height: pixels.
        width: pixels.
        num_frames: of the whole video.
        num_sections: of the whole video.
        num_finished_sections: sampled so far.
        progress: from 0 to 1.
        seconds_left: expected; None while nothing is known.
        failure: set if and only if it failed.
        notes: what of the request changes nothing or was cut, and what the model was not trained for.
    """

    id: str
    state: JobState = JobState.QUEUED
    created: float
    ended: float | None = None
    model: str
    prompt: str
    order: str
    seed: int
    redos: "tuple[Redo, ...]" = ()
    seconds: float
    fps: int
    height: int
    width: int
    num_frames: int
    num_sections: int
    num_finished_sections: int = 0
    progress: float = 0.0
    seconds_left: float | None = None
    failure: VideoFailure | None = None
    notes: tuple[str, ...] = ()


def describe(folder: "JobFolder", *, created: float) -> VideoStatus:
    """The video of a job as it waits."""
    record = folder.record
    sampling, request = record.sampling, record.request
    assert request.size is not None, "the record holds the size of the video"
    height, width = request.size
    return VideoStatus(
        id=folder.path.name,
        created=created,
        model=str(record.metadata["model"]),
        prompt=request.prompt,
        order=sampling.order,
        seed=sampling.seed,
        redos=tuple(folder.redos),
        seconds=record.num_frames / request.fps,
        fps=request.fps,
        height=height,
        width=width,
        num_frames=record.num_frames,
        num_sections=sampling.num_sections,
        notes=request.notes(),
    )


def describe_damaged(name: str, failure: VideoFailure, *, created: float) -> VideoStatus:
    """A video of whose folder nothing can be read but that it is there."""
    return VideoStatus(
        id=name, state=JobState.FAILED, created=created, ended=created, failure=failure, model="", prompt="", order="",
        seed=0, seconds=0.0, fps=0, height=0, width=0, num_frames=0, num_sections=0,
    )  # fmt: skip
