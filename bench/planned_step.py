"""One denoising step as a plan has it, on tensors without memory: who would hold what at the worst moment."""

import torch
from torch import Tensor

from ..engine.attention_choice import CANDIDATES
from ..engine.config import SamplingConfig
from ..engine.events import PhaseEvent
from ..engine.history import CleanLatents
from ..engine.invariants import JobInvariants
from ..engine.known_shapes import KnownModel
from ..engine.model_shapes import MAX_PROMPT_TOKENS
from ..engine.packing import PackedSection
from ..engine.plan import Plan
from ..engine.sections import plan_sections
from ..engine.transformer import FrameIndices, PackedTransformer
from ..engine.units import Unit, UnitLayout, unit_specs
from ..quant import WeightFormat, make_format
from .live_tensors import LiveTensors, PhasePeak
from .traffic import OpaqueAttention

_META = torch.device("meta")


class PlannedUnits:
    """Units in slots: residents have theirs, the others share the ring; as a streamer has them."""

    def __init__(self, plan: Plan, known: KnownModel, weight_format: WeightFormat) -> None:
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
        """Nothing is overwritten here."""


def ring_slots(count: int, num_bytes: int) -> list[Tensor]:
    """Slots that units pass through."""
    return [torch.empty(num_bytes, dtype=torch.uint8, device=_META) for _ in range(count)]


def resident_units(count: int, num_bytes: int) -> list[Tensor]:
    """Slots of units that stay."""
    return [torch.empty(num_bytes, dtype=torch.uint8, device=_META) for _ in range(count)]


def make_job(transformer: PackedTransformer, plan: Plan, known: KnownModel) -> JobInvariants:
    """What a job computes once, for the longest prompt."""
    config, dtype = transformer.config, transformer.residual_dtype
    vectors = 12 * config.num_layers + 3 * config.num_single_layers + 2

    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=_META)

    return JobInvariants(
        modulation=empty(plan.num_steps, vectors * config.inner_dim),
        refined_text=empty(plan.num_steps, MAX_PROMPT_TOKENS, config.inner_dim),
        vision_tokens=empty(1, known.shapes.image_encoder.num_tokens, config.inner_dim),
        num_dual_blocks=config.num_layers,
    )


def find_step_owners(plan: Plan, known: KnownModel, sampling: SamplingConfig) -> list[PhasePeak]:
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
        if plan.precision == "int8":
            transformer.self_attention = CANDIDATES["int8"].make()
        transformer.token_chunk = plan.token_chunk
        job = make_job(transformer, plan, known)
        section = _pack(transformer, plan, sampling)
        latents = _empty_latents(transformer, plan, plan.window)
        transformer.step(latents, 0, job, section).compute()
        peaks: list[PhasePeak] = live.peaks()
    return peaks


def _pack(transformer: PackedTransformer, plan: Plan, sampling: SamplingConfig) -> PackedSection:
    section = plan_sections(sampling)[0]
    indices = FrameIndices(
        latent=section.latent_indices,
        clean=section.clean_indices,
        clean_2x=section.clean_2x_indices,
        clean_4x=section.clean_4x_indices,
    )
    clean = CleanLatents(*(_empty_latents(transformer, plan, frames) for frames in (2, 2, 16)))
    return transformer.pack_section(clean, indices, (plan.window, plan.size[0] // 8, plan.size[1] // 8))


def _empty_latents(transformer: PackedTransformer, plan: Plan, num_frames: int) -> Tensor:
    shape = (1, transformer.config.in_channels, num_frames, plan.size[0] // 8, plan.size[1] // 8)
    return torch.empty(shape, dtype=torch.float32, device=_META)
