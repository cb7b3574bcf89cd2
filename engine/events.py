"""What a running job reports."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEvent:
    """A phase begins.

    Attributes:
        phase: "load", "text", "image", "prepare" (what all sections share); for every section "pack" (its history),
            "denoise", "decode" and "encode" (its frames into the file), with a job folder "checkpoint" after denoising and
            after encoding (what is finished onto the disk); "write" (the file is put together).
    """

    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversionEvent:
    """The model is being written as a unit store, which happens once for a model and a precision.

    Attributes:
        phase: "convert", then "verify".
        done_bytes: bytes of the store that are written, or read back.
        total_bytes: bytes of the store.
    """

    phase: str
    done_bytes: int
    total_bytes: int


OnConversion = Callable[[ConversionEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSlot:
    """Neighbouring sections with one prompt, as they come in the video.

    Attributes:
        text: the whole prompt, base text included.
        start_seconds: of video.
        end_seconds: of video.
        sections: in video order; each by its place in generation order, from 0.
    """

    text: str
    start_seconds: float
    end_seconds: float
    sections: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """The request is understood: what the video will be.

    Attributes:
        order: "inverted" or "forward".
        num_sections: sections to generate.
        num_frames: frames of the whole video.
        fps: frames per second.
        seconds: num_frames / fps.
        requested_seconds: what was asked for; the video has whole sections.
        height: pixels of the video.
        width: pixels of the video.
        image_height: pixels of the image, which is scaled and cropped to the video's size.
        image_width: pixels of the image.
        num_finished_sections: sections that an earlier run of the job has sampled.
        job_dir: folder from which the job can be resumed; None where nothing is kept.
        prompts: what happens when, in video order; empty where all sections have one prompt.
        num_given_frames: of the video that is extended, in ``num_frames``.
        notes: what of the request changes nothing, what the model was not trained for, and what decides the bits and is
            another than when the job began.
    """

    order: str
    num_sections: int
    num_frames: int
    fps: int
    seconds: float
    requested_seconds: float
    height: int
    width: int
    image_height: int
    image_width: int
    num_finished_sections: int = 0
    job_dir: Path | None = None
    prompts: tuple[PromptSlot, ...] = ()
    num_given_frames: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NoteEvent:
    """What whoever asked should know, and what does not stop the job: a prompt that is longer than an encoder takes.

    Attributes:
        text: a sentence.
    """

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEvent:
    """A denoising step is done.

    Attributes:
        section: section in generation order, from 0.
        num_sections: sections of the job.
        step: step in the section, from 0.
        num_steps: steps of a section.
        is_computed: False where the step cache skipped the transformer.
        first_latent_frame: position of the section in the video; the start latent is 0.
        x0: current prediction of the clean latents [1, C, T, Y, X]; valid until the next step.
    """

    section: int
    num_sections: int
    step: int
    num_steps: int
    is_computed: bool
    first_latent_frame: int
    x0: "Tensor"


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionEvent:
    """A section is denoised, decoded and handed to the writer.

    Attributes:
        section: section in generation order, from 0.
        num_sections: sections of the job.
        num_final_frames: frames of the video that are final so far.
        num_frames: frames of the whole video.
    """

    section: int
    num_sections: int
    num_final_frames: int
    num_frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEvent:
    """A file is complete on disk."""

    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuedEvent:
    """A job waits.

    Attributes:
        num_ahead: jobs that run before it, as things are.
        priority: of this job.
    """

    num_ahead: int
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StartedEvent:
    """The job's turn has come.

    Attributes:
        job_dir: the job's folder.
    """

    job_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewEvent:
    """A picture of the latents at a step was renewed.

    Attributes:
        path: the PNG.
        section: section in generation order, from 0.
        step: step in the section, from 0.
    """

    path: Path
    section: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DoneEvent:
    """The job is over, and the video complete.

    Attributes:
        path: the MP4.
        num_frames: frames in it.
    """

    path: Path
    num_frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialEvent:
    """The job stops early, and a playable file holds what is finished.

    Attributes:
        path: the file; its metadata says which frames it holds.
        num_frames: frames in it, those included that the next section would have changed.
        num_video_frames: frames that the whole video would have had.
    """

    path: Path
    num_frames: int
    num_video_frames: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureEvent:
    """The command or the job failed.

    Attributes:
        error: name of the exception's class.
        message: what went wrong, and the remedy.
        notes: what became of the finished part.
        exit_code: of the process, or what a command would return.
    """

    error: str
    message: str
    notes: tuple[str, ...]
    exit_code: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelledEvent:
    """The command or the job was told to stop.

    Attributes:
        signal: "SIGINT" for Ctrl-C, "SIGTERM", "SIGHUP" where the terminal closed, or "cancel" for ``Job.cancel``.
        notes: what became of the finished part.
        exit_code: of the process.
    """

    signal: str
    notes: tuple[str, ...]
    exit_code: int


Event = (
    PhaseEvent
    | ConversionEvent
    | JobEvent
    | NoteEvent
    | StepEvent
    | SectionEvent
    | FileEvent
    | PartialEvent
    | QueuedEvent
    | StartedEvent
    | PreviewEvent
    | DoneEvent
    | FailureEvent
    | CancelledEvent
)

EventHandler = Callable[[Event], None]
