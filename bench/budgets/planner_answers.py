"""What the planner answers in place of a card: outcome and time line of a job, and who holds what at the worst moment.

Nothing runs: the owners are those of one denoising step as the plan has it, on tensors without memory.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from ...engine.errors import BudgetError
from ...engine.events import PhaseEvent
from ...engine.families.family import PlannedModel
from ...engine.families.framepack.invariants import JobInvariants
from ...engine.families.framepack.model_sizes import MAX_PROMPT_TOKENS
from ...engine.families.framepack.transformer import PackedTransformer
from ...engine.families.framepack.unit_layout import unit_specs
from ...engine.model.attention_choice import CANDIDATES
from ...engine.model.packing import ContextGroup, PackedSection
from ...engine.model.units import Unit, UnitLayout
from ...engine.planning.budget import make_plan
from ...engine.planning.machine import Card, Machine
from ...engine.planning.plan import PhaseBytes, Plan
from ...engine.planning.planned_job import PlannedJob
from ...engine.planning.roofline import copy_rate
from ...engine.request.config import SamplingConfig
from ...engine.request.sections import plan_sections
from ...engine.request.seen import positions
from ...quant import WeightFormat, make_format
from ..meters.live_tensors import LiveTensors, PhasePeak
from ..meters.memory_timeline import TimelineSample
from ..meters.traffic import OpaqueAttention
from ..records.rows import Basis
from .point import MemoryJob, Outcome

_META = torch.device("meta")
_EVENT_PHASES = {
    "text encode": "text",
    "image encode": "image",
    "VAE encode": "image",
    "prepare": "prepare",
    "denoise": "denoise",
    "VAE decode": "decode",
}
_NUM_SECTIONS = 4
# Of the phases before the step loop only the reading of their weights is predicted; none is drawn thinner than this.
_LEAST_SECONDS = 0.5
_DISK = "disk"


class PlannedUnits:
    """Units in slots: residents have theirs, the others share the ring; as a streamer has them."""

    def __init__(self, plan: Plan, known: PlannedModel, weight_format: WeightFormat) -> None:
        """Allocate the slots of ``plan``."""
        self._layouts = [UnitLayout(spec, weight_format) for spec in unit_specs(known.shapes.transformer)]
        slot = max(layout.num_bytes for layout in self._layouts)
        residents = plan.residents if plan.ring else range(plan.num_units)
        self._ring = ring_slots(plan.ring, slot)
        self._residents = dict(zip(residents, resident_units(len(residents), slot), strict=True))

    def acquire(self, index: int) -> Unit:
        slot = self._residents[index] if index in self._residents else self._ring[index % len(self._ring)]
        return self._layouts[index].bind(slot)

    def release(self, index: int) -> None:
        """Do nothing: the planner's slots are never filled with another unit."""


# Two functions, since owners are told by the function that made them.
def ring_slots(count: int, num_bytes: int) -> list[Tensor]:
    """Slots that units pass through."""
    return [torch.empty(num_bytes, dtype=torch.uint8, device=_META) for _ in range(count)]


def resident_units(count: int, num_bytes: int) -> list[Tensor]:
    """Slots of units that stay."""
    return [torch.empty(num_bytes, dtype=torch.uint8, device=_META) for _ in range(count)]


def make_job(transformer: PackedTransformer, plan: Plan, known: PlannedModel) -> JobInvariants:
    """What a job computes once, for the longest prompt."""
    config, dtype = transformer.config, transformer.residual_dtype
    vectors = 12 * config.num_layers + 3 * config.num_single_layers + 2

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=_META)

    return JobInvariants(
        modulation=empty(plan.num_steps, vectors * config.inner_dim),
        refined_text=empty(plan.num_steps, MAX_PROMPT_TOKENS, config.inner_dim),
        vision_tokens=empty(1, known.shapes.num_image_tokens, config.inner_dim),
        num_dual_blocks=config.num_layers,
    )


def find_step_owners(plan: Plan, known: PlannedModel, sampling: SamplingConfig) -> list[PhasePeak]:
    """Who holds most at the worst moment of a step of ``plan``."""
    weight_format = make_format(plan.precision, torch.bfloat16)
    with torch.inference_mode(), LiveTensors("meta") as live, OpaqueAttention():
        live.on_event(PhaseEvent(phase="denoise"))
        transformer = PackedTransformer(
            known.shapes.transformer,
            weight_format.dtype,
            _META,
            weight_format=weight_format,
            # Its weights are not on the card while steps run.
            job_device=torch.device("cpu"),
            has_fp32_head=weight_format.dtype == torch.bfloat16,
            units=PlannedUnits(plan, known, weight_format),
        )
        attention = CANDIDATES["int8" if plan.precision == "int8" else "sdpa"].make()
        context = transformer.context(None, attention, plan.token_chunk)
        job = make_job(transformer, plan, known)
        section = _pack(transformer, plan, sampling)
        latents = _empty_latents(transformer, plan, plan.window)
        transformer.step(latents, 0, job, section, context).compute()
        peaks: list[PhasePeak] = live.peaks()
    return peaks


def _pack(transformer: PackedTransformer, plan: Plan, sampling: SamplingConfig) -> PackedSection:
    section = plan_sections(sampling)[0]
    groups = []
    for levels in section.seen.groups():
        indices = positions(levels)
        groups.append(
            ContextGroup(levels[0].kernel, _empty_latents(transformer, plan, len(indices)), indices)
        )
    size = plan.window, plan.size[0] // 8, plan.size[1] // 8
    return transformer.pack_section(groups, section.latent_indices, size)


def _empty_latents(transformer: PackedTransformer, plan: Plan, num_frames: int) -> Tensor:
    shape = (1, transformer.config.in_channels, num_frames, plan.size[0] // 8, plan.size[1] // 8)
    return torch.empty(shape, dtype=torch.float32, device=_META)


class PlanRunner:
    """Asks the planner.

    Attributes:
        basis: of what is found.
    """

    basis: Basis = "predicted"

    def __init__(self, known: PlannedModel, card: Card, ram: int) -> None:
        """Plan for ``card`` and ``ram`` bytes on the host."""
        self._known = known
        self._card = card
        self._ram = ram

    def run(self, job: MemoryJob) -> Outcome:
        """The plan of ``job``; watched, its time line, and the owners of a step on the meta device."""
        assert job.budget is not None, "a planner asks for a limit"
        try:
            plan = make_plan(self._planned(job), Machine(vram=job.budget, ram=self._ram, card=self._card))
        except BudgetError as error:
            return Outcome(status="refused", text=str(error))
        residents = len(plan.residents) if plan.ring else plan.num_units
        return Outcome(
            status="done",
            text=f"{residents} of {plan.num_units} units resident, VAE tiles {plan.vae_tile or 'none'}",
            step=plan.seconds_per_step,
            frame=plan.seconds_per_frame,
            peak=plan.peak,
            source="planner",
            samples=tuple(predict_timeline(plan, self._known)) if job.is_watched else (),
            owners=tuple(find_step_owners(plan, self._known, self._sampling(job))) if job.is_watched else (),
        )

    def _planned(self, job: MemoryJob) -> PlannedJob:
        return PlannedJob(
            shapes=self._known.shapes,
            sampling=self._sampling(job),
            size=job.size,
            precision=job.precision,
            attention=job.attention,
        )

    def _sampling(self, job: MemoryJob) -> SamplingConfig:
        return SamplingConfig(
            num_sections=_NUM_SECTIONS,
            num_steps=job.num_steps,
            order=self._known.order,
            latent_window_size=job.window,
        )


def predict_timeline(plan: Plan, known: PlannedModel) -> Iterator[TimelineSample]:
    """Two samples a phase, at its beginning and end: tensors, with workspace, with the driver's context."""
    start = 0.0
    for phase, seconds in _phase_seconds(plan, known):
        held = {
            "allocated": phase.weights + phase.slots + phase.activations,
            "reserved": phase.total - phase.context,
            "device_used": phase.total,
        }
        for moment in (start, start + seconds):
            yield TimelineSample(
                seconds=moment,
                phase=_EVENT_PHASES[phase.name],
                rss=plan.host.total,
                pinned=plan.host.staging + (plan.host.store if plan.tier == "pinned" else 0),
                **held,
            )
        start += seconds


def _phase_seconds(plan: Plan, known: PlannedModel) -> Iterator[tuple[PhaseBytes, float]]:
    shapes, rate = known.shapes, copy_rate(plan.card, _DISK)

    for reads in ("text", "image"):
        num_bytes = 2 * sum(encoder.num_params for encoder in shapes.encoders if encoder.reads == reads)
        yield plan.phase(f"{reads} encode"), max(num_bytes / rate, _LEAST_SECONDS)
    yield plan.phase("VAE encode"), max(plan.phase("VAE encode").weights / rate, _LEAST_SECONDS)
    yield plan.phase("prepare"), _LEAST_SECONDS
    for _ in range(_NUM_SECTIONS):
        yield plan.phase("denoise"), plan.num_steps * plan.seconds_per_step
        yield plan.phase("VAE decode"), plan.decode_seconds
