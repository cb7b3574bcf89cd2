"""What a running job reports."""

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseEvent:
    """A phase begins.

    Attributes:
        phase: "load", "text", "image", "denoise", "decode" or "write".
    """

    phase: str


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
    x0: Tensor


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


Event = PhaseEvent | StepEvent | SectionEvent | FileEvent
