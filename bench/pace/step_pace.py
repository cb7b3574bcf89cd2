"""The pace of one variant of a model's denoising: steps and sections at real shapes, in every unit that people use."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...engine.events import Event, EventHandler, StepEvent
from ...engine.families.family import StepSizes
from ...engine.model.conditioning import Conditioning
from ...engine.planning.machine import Card
from ...engine.planning.roofline import step_time
from ...engine.request.config import SamplingConfig
from ...engine.sampling.denoiser import LatentSection
from ..meters.job_cost import CostRecorder, JobCost, Meter
from ..meters.section_streams import SectionStreams
from ..records.rows import Gate


class LatentSampler(Protocol):
    """An engine, or a model with random weights."""

    def sample(
        self, conditioning: Conditioning, sampling: SamplingConfig, *, on_event: EventHandler | None = None
    ) -> Iterator[LatentSection]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPace:
    """How fast one variant denoises; its first section, which warms up, is left out.

    Attributes:
        sections: seconds of each section: packing and steps.
        steps: seconds of each section's steps over their number, skipped ones included.
        num_steps: steps of a section.
        num_computed: steps that ran the transformer, in all sections.
        num_frames: frames of video that a section adds.
        step_flops: of a computed step: linear layers and attention of the blocks.
        peak_allocated: largest memory of tensors on the device; None on the CPU.
        peak_rss: largest resident set.
        copied: bytes of weights that each section copied to the device, per step.
        waits: seconds of each section in which compute waited for copies, per step.
        latents: of all sections, in generation order.
    """

    sections: tuple[float, ...]
    steps: tuple[float, ...]
    num_steps: int
    num_computed: int
    num_frames: int
    step_flops: float
    peak_allocated: int | None
    peak_rss: int
    copied: tuple[float, ...]
    waits: tuple[float, ...]
    latents: Tensor

    @property
    def step(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.steps)

    @property
    def section(self) -> float:
        """Median seconds of a section."""
        return statistics.median(self.sections)

    @property
    def frame(self) -> float:
        """Median seconds of a frame."""
        return self.section / self.num_frames

    @property
    def computed_share(self) -> float:
        """Part of the steps that a step cache did not skip."""
        return self.num_computed / (len(self.steps) * self.num_steps)

    @property
    def flops(self) -> float:
        """Operations a second: what was computed over what all steps took."""
        return self.step_flops * self.computed_share / self.step


def measure_pace(
    sampler: LatentSampler,
    conditioning: Conditioning,
    sampling: SamplingConfig,
    shape: StepSizes,
    *,
    meter: Meter,
    clock: Callable[[], float] = time.perf_counter,
    on_event: EventHandler | None = None,
) -> StepPace:
    """Denoise ``sampling.num_sections`` sections, of which the first is not counted.

    Args:
        sampler: the model.
        conditioning: of the job.
        sampling: at least two sections.
        shape: of the step, for its operations.
        meter: waits for the device and reads memory.
        clock: seconds.
        on_event: gets every event of the job too.
    """
    recorder, counter, streams = CostRecorder(meter, clock), _ComputedSteps(), SectionStreams()

    def report(event: Event) -> None:
        recorder.on_event(event)
        counter.on_event(event)
        streams.on_event(event)
        if on_event is not None:
            on_event(event)

    with streams.watching():
        latents = [section.latents for section in sampler.sample(conditioning, sampling, on_event=report)]
    record = recorder.finish(length=0.0, file_bytes=0)
    return _sum_up(record, torch.cat(latents, dim=2), counter.num_computed, streams, sampling, shape)


class _ComputedSteps:
    """Counts steps that ran the transformer, those of the first section left out."""

    def __init__(self) -> None:
        self.num_computed = 0

    def on_event(self, event: Event) -> None:
        if isinstance(event, StepEvent) and event.section > 0:
            self.num_computed += event.is_computed


def _sum_up(
    record: JobCost,
    latents: Tensor,
    num_computed: int,
    streams: SectionStreams,
    sampling: SamplingConfig,
    shape: StepSizes,
) -> StepPace:
    counted = record.sections[1:]
    return StepPace(
        sections=tuple(section.total for section in counted),
        steps=tuple(section.seconds["denoise"] / sampling.num_steps for section in counted),
        num_steps=sampling.num_steps,
        num_computed=num_computed,
        num_frames=4 * sampling.latent_window_size,
        step_flops=sum(block.products + block.attention for block in shape.blocks),
        peak_allocated=record.peak_allocated,
        peak_rss=record.peak_rss,
        copied=tuple(num_bytes / sampling.num_steps for num_bytes in streams.copied_bytes[1:]),
        waits=tuple(seconds / sampling.num_steps for seconds in streams.waits[1:]),
        latents=latents,
    )


def expected_step(shape: StepSizes, card: Card, *, copied_bytes: float = 0.0) -> float:
    """Seconds that a step should take on ``card`` by the planner's roofline, copies of weights beside it."""
    return step_time(shape, card, copied_bytes=round(copied_bytes), tier="pinned").total


def roofline_share(shape: StepSizes, card: Card, flops: float) -> float:
    """Part of the best rate of the card's tensor cores, dense, in the format of the products."""
    precision = shape.precision
    best = card.bf16
    if precision.is_quantized:
        best = card.int8 if precision.is_fused else card.fp8 or card.bf16
    return flops / (1e12 * best)


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """What is varied; names as in ``EngineConfig`` and ``SamplingConfig``."""

    precision: str
    attention: str
    step_cache: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One variant, measured.

    Attributes:
        variant: what ran.
        pace: how fast.
        gate: the comparison of a small model's step that came before.
        attention: backend that was used.
        error: relative RMS of its latents to those of the first variant; 0 for that one.
        share: of what the card should do; None for a card that is not in the table, and on the CPU.
        roofline: share of the best rate of the card's tensor cores; None where ``share`` is.
        reasons: why, where the share is low.
    """

    variant: Variant
    pace: StepPace
    gate: Gate
    attention: str
    error: float
    share: float | None
    roofline: float | None
    reasons: tuple[str, ...]
