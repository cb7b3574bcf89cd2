"""One question to a machine: what becomes of a model's work inside a budget of memory, and what does it cost?"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self

from ..meters.live_tensors import Owner, PhasePeak
from ..meters.memory_timeline import TimelineSample
from ..records.rows import Basis

Work = Literal["video", "steps", "stored steps"]
Status = Literal["done", "refused", "out of memory", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryJob:
    """Work inside a budget.

    Attributes:
        work: "video" (two sections, from image and prompt to the file), "steps" (one section of random weights in the
            model's shape) or "stored steps" (one section of the store that ``model`` names, in RAM).
        model: as ``Engine.load`` takes it; for "steps" only its shape is taken.
        device: "cuda", "cuda:N" or "cpu".
        budget: bytes on the device, context included; on the CPU bytes in RAM; None is what there is.
        ram: bytes in RAM beside a CUDA device; None is the engine's choice.
        emulated: memory of the card that is emulated, bytes; None for this one.
        size: (height, width) in pixels.
        window: latent frames of a section.
        num_steps: steps of a section.
        precision: as in ``EngineConfig``.
        attention: as in ``EngineConfig``.
        is_watched: whether time line and owners are kept, which costs speed.
    """

    work: Work = "video"
    model: str
    device: str
    budget: int | None
    ram: int | None = None
    emulated: int | None = None
    size: tuple[int, int]
    window: int = 9
    num_steps: int = 4
    precision: str
    attention: str = "auto"
    is_watched: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``dataclasses.asdict`` made, after a trip through JSON."""
        return cls(**{**values, "size": tuple(values["size"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job; what its work does not tell has its default.

    Attributes:
        status: "refused" by the planner before anything ran, "out of memory" while it ran, or "failed" otherwise.
        text: why; of a job that is done, how it ran.
        budget: of the job.
        allowed: bytes that the planner had.
        planned: bytes of the plan's largest phase.
        peak: most bytes at once: on CUDA what the process or the device had lent out, on the CPU the resident set.
        source: where ``peak`` and the device's curve come from.
        ring: slots that units passed through; 0 where all were resident.
        num_residents: units that stayed.
        num_units: units of the model.
        tier: where the units were kept: "disk", or "pinned" where all are in memory.
        step: seconds of a step; None where the job did not finish, as is the next one.
        frame: seconds of a frame of video, decoding included.
        exposed: part of a step in which compute waited for a unit.
        attention: backend that was used.
        checksum: of the latents' bytes.
        samples: memory against time; empty unless it was watched.
        owners: the worst moments, by phase; empty unless it was watched.
    """

    status: Status
    text: str = ""
    budget: int | None = None
    allowed: int = 0
    planned: int = 0
    peak: int = 0
    source: str = "none"
    ring: int = 0
    num_residents: int = 0
    num_units: int = 0
    tier: str = ""
    step: float | None = None
    frame: float | None = None
    exposed: float = 0.0
    attention: str = ""
    checksum: int = 0
    samples: tuple[TimelineSample, ...] = ()
    owners: tuple[PhasePeak, ...] = ()

    @property
    def is_done(self) -> bool:
        return self.status == "done"

    @property
    def is_kept(self) -> bool:
        """Whether the process took no more than it was allowed."""
        return self.is_done and self.peak <= self.allowed

    @property
    def is_wrong(self) -> bool:
        """Whether the planner allowed it, and it was not kept."""
        return self.status != "refused" and not self.is_kept

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """What ``dataclasses.asdict`` made, after a trip through JSON."""
        owners = [
            PhasePeak(**{**peak, "owners": tuple(Owner(**owner) for owner in peak["owners"])})
            for peak in values["owners"]
        ]
        samples = tuple(TimelineSample(**sample) for sample in values["samples"])
        return cls(**{**values, "samples": samples, "owners": tuple(owners)})


class Runner(Protocol):
    """Finds out what becomes of a job.

    Attributes:
        basis: "measured" or "emulated" in a fresh process each, or "predicted" by the planner.
    """

    basis: Basis

    def run(self, job: MemoryJob) -> Outcome: ...


def as_dict(value: MemoryJob | Outcome) -> dict[str, Any]:
    """For JSON; ``from_dict`` reads it."""
    return asdict(value)
