"""Bodies of requests and answers over HTTP, as the OpenAPI document describes them."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Json, WithJsonSchema

from ....jobs.state import JobState
from ..videos.parameters import LoraParameters, VideoParameters

if TYPE_CHECKING:
    from ..videos.status import VideoStatus
    from ..videos.workers import ModelCard

# Where the words that clients of /v1/videos elsewhere know differ from ours.
_STATUSES = {JobState.RUNNING: "in_progress", JobState.DONE: "completed"}
_MAX_SECONDS_LEFT = 10**9


class VideoBody(VideoParameters):
    """A video to make, with its image."""

    image: str = Field(
        description="PNG, JPEG, WebP, GIF or BMP in base64, or as a data URL. No address is fetched."
    )


class VideoForm(VideoParameters):
    """A video to make, with its image, as the parts of a form; read by :mod:`.uploads`."""

    image: Annotated[str, WithJsonSchema({"type": "string", "format": "binary"})]
    # A part of a form is text.
    loras: Json[Annotated[list[LoraParameters], Field(max_length=16)]] = Field(
        default_factory=list, description="A list in JSON, as in the other body."
    )


class RedoBody(BaseModel):
    """Which section is made again, and those that come after it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    section: int = Field(ge=0, le=100_000, description="In generation order, from 0.")
    seed: int | None = Field(default=None, ge=0, lt=2**63, description="Of this section alone.")
    prompt: str | None = Field(
        default=None, min_length=1, max_length=8192, description="From this section on."
    )


class ProblemDetails(BaseModel):
    """What was wrong."""

    code: str = Field(description="For programs.")
    message: str = Field(description="For people.")
    field: str | None = Field(description="What it is about: a field, a parameter, a header, or body.")


class Problem(BaseModel):
    """Every answer that is no success."""

    error: ProblemDetails


class Failure(BaseModel):
    """Why a video was not made."""

    code: str
    message: str


class VideoObject(BaseModel):
    """A video."""

    id: str
    object: Literal["video"] = "video"
    status: Literal["queued", "in_progress", "paused", "completed", "failed", "cancelled"]
    progress: int = Field(ge=0, le=100)
    created_at: int
    completed_at: int | None = Field(description="When it ended, in whatever way.")
    model: str
    prompt: str
    seed: int
    seconds: float = Field(description="Of the video.")
    fps: int
    height: int
    width: int
    num_frames: int
    num_sections: int
    num_finished_sections: int
    seconds_left: float | None = Field(description="Until it is made, as things go.")
    error: Failure | None
    notes: list[str] = Field(
        description="What of the request changes nothing or was cut, and what the model was not trained for."
    )

    @classmethod
    def of(cls, status: "VideoStatus") -> "VideoObject":
        """The video as HTTP tells of it."""
        same = {name: getattr(status, name) for name in cls.model_fields if hasattr(status, name)}
        failure, left = status.failure, status.seconds_left
        changed = {
            "status": _STATUSES.get(status.state, status.state.value),
            "progress": int(100 * status.progress),
            "created_at": int(status.created),
            "completed_at": None if status.ended is None else int(status.ended),
            "seconds_left": None if left is None else min(max(left, 0.0), _MAX_SECONDS_LEFT),
            "error": None if failure is None else Failure(code=failure.error, message=failure.message),
        }
        return cls(**same | changed)


class VideoList(BaseModel):
    """Some of the videos."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    first_id: str | None
    last_id: str | None = Field(description="For the parameter after of the next page.")
    has_more: bool


class DeletedVideo(BaseModel):
    """A video that is no more."""

    id: str
    object: Literal["video.deleted"] = "video.deleted"
    deleted: Literal[True] = True


class ModelObject(BaseModel):
    """The model that this server runs."""

    id: str
    object: Literal["model"] = "model"
    owned_by: Literal["isoframe"] = "isoframe"
    model_hash: str
    device: str
    precision: str
    sizes: list[tuple[int, int]] = Field(description="Height and width of the sizes that it was trained on.")
    loras: list[str]

    @classmethod
    def of(cls, card: "ModelCard") -> "ModelObject":
        """The model as HTTP tells of it."""
        values = dataclasses.asdict(card)
        return cls(id=values.pop("name"), **values)


class ModelList(BaseModel):
    """The models of this server: one."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"] = "ok"
    version: str
