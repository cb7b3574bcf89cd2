"""The planner's bytes are those of the code: whole steps of the 13B model on the meta device, storage by storage."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from seen_groups import positions_of
from storage_tracker import StorageTracker
from torch import Tensor

from isoframe.engine.families.framepack.family import FramePack
from isoframe.engine.families.framepack.invariants import JobInvariants
from isoframe.engine.families.framepack.model_sizes import ModelShapes, published_shapes
from isoframe.engine.families.framepack.step_sizes import weight_sizes
from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.families.framepack.unit_layout import unit_specs
from isoframe.engine.model.attention import FloatAttention, Int8Attention, SelfAttention
from isoframe.engine.model.attention_backends import AttentionBackend
from isoframe.engine.model.packing import ContextGroup
from isoframe.engine.model.precision import find_precision
from isoframe.engine.model.units import Unit, UnitLayout
from isoframe.engine.planning.budget import make_plan
from isoframe.engine.planning.machine import Machine, find_card
from isoframe.engine.planning.plan import Plan
from isoframe.engine.planning.planned_job import PlannedJob
from isoframe.engine.request.config import SamplingConfig
from isoframe.engine.request.sampling_config import STEP_CACHES
from isoframe.engine.request.sections import plan_sections
from isoframe.engine.sampling.step_cache import make_step_cache
from isoframe.quant import make_format

META = torch.device("meta")
PUBLISHED = published_shapes()
# Blocks follow each other: two of each hold as much at once as twenty and forty.
SHORT = replace(PUBLISHED, transformer=replace(PUBLISHED.transformer, num_layers=2, num_single_layers=2))
BUCKETS = [tuple(size) for size in FramePack.profile()["buckets"]]
GIB = 2**30


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """What an attention kernel allocates: its result and the logarithms of the sums."""
    log_sums = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    del log_sums
    return torch.empty_like(q)


FUSED = FloatAttention(
    AttentionBackend(name="fused", exactness="exact", run=fused_attention, obstacle=lambda *_: None)
)


class Arena:
    """Units in slots of one arena: residents have theirs, the others share the ring."""

    def __init__(self, layouts: list[UnitLayout], plan: Plan) -> None:
        self._layouts = layouts
        self._slot = max(layout.num_bytes for layout in layouts)
        self._residents = {unit: plan.ring + i for i, unit in enumerate(plan.residents)}
        self._ring = plan.ring
        self._memory = torch.empty(
            self._slot * (plan.ring + len(plan.residents)), dtype=torch.uint8, device=META
        )

    def acquire(self, index: int) -> Unit:
        slot = self._residents[index] if index in self._residents else index % self._ring
        return self._layouts[index].bind(self._memory[slot * self._slot : (slot + 1) * self._slot])

    def release(self, index: int) -> None:
        pass


class CountedInt8Attention(Int8Attention):
    """Allocates what the CUDA launcher does beside its arguments: the values in fp16, in whole blocks of 64 rows."""

    def __init__(self) -> None:
        super().__init__()
        attend = self._attention

        def counted(q8: Tensor, q_scale: Tensor, k8: Tensor, k_scale: Tensor, v: Tensor, *rest: Any) -> None:
            packed = v.new_empty((v.shape[2], -(-v.shape[1] // 64) * 64, v.shape[3]), dtype=torch.float16)
            attend(q8, q_scale, k8, k_scale, v, *rest)
            del packed

        self._attention = counted


def planned(
    precision: str,
    size: tuple[int, int],
    vram: float,
    sampling: SamplingConfig,
    *,
    attention: str = "auto",
    card: str = "RTX 3060",
    shapes: ModelShapes = PUBLISHED,
) -> Plan:
    job = PlannedJob(shapes=shapes, sampling=sampling, size=size, precision=precision, attention=attention)
    machine = Machine(vram=int(vram * GIB), ram=16 * GIB, card=find_card(card))
    return make_plan(job, machine)


def parameters(model: PackedTransformer) -> Iterator[Tensor]:
    """All weights of ``model`` outside the units, and the units' own memory, which a plan does not have."""
    for destination in model.destinations.values():
        yield from destination.views.values() if hasattr(destination, "views") else [destination.tensor]  # type: ignore[attr-defined]  # one of two kinds


def measured_peak(
    plan: Plan,
    sampling: SamplingConfig,
    *,
    shapes: ModelShapes = PUBLISHED,
    attention: SelfAttention = FUSED,
    num_steps: int = 1,
) -> int:
    """Bytes at the worst moment of a section's first steps, all tables and the arena included."""
    config = shapes.transformer
    weight_format = make_format(plan.precision, torch.bfloat16)
    model = PackedTransformer(
        config, weight_format.dtype, META, weight_format=weight_format, has_fp32_head=True
    )
    tracker = StorageTracker(parameters(model))
    dim, (y, x) = config.inner_dim, (plan.size[0] // 8, plan.size[1] // 8)
    vectors = 12 * config.num_layers + 3 * config.num_single_layers + 2
    section = plan_sections(sampling)[0]

    def empty(*shape: int, dtype: torch.dtype = model.residual_dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=META)

    with torch.inference_mode(), tracker:
        arena = Arena([UnitLayout(spec, weight_format) for spec in unit_specs(config)], plan)
        context = model.context(arena, attention, plan.token_chunk)
        job = JobInvariants(
            modulation=empty(sampling.num_steps, vectors * dim),
            refined_text=empty(sampling.num_steps, 256, dim),
            vision_tokens=empty(1, 729, dim),
            num_dual_blocks=config.num_layers,
        )
        packed = model.pack_section(
            [
                ContextGroup(kernel, empty(1, 16, len(indices), y, x, dtype=torch.float32), indices)
                for kernel, indices in positions_of(section).items()
            ],
            section.latent_indices,
            (plan.window, y, x),
        )
        latents = empty(1, 16, plan.window, y, x, dtype=torch.float32)
        cache = make_step_cache(sampling, [1.0] * sampling.num_steps)
        for step in range(num_steps):
            cache.velocity(step, model.step(latents, step, job, packed, context))
    return tracker.peak


def assert_exact(plan: Plan, peak: int, shapes: ModelShapes = PUBLISHED) -> None:
    """The plan is not below ``peak``, and at most 10 % above it even without the weights, which are exact."""
    phase = plan.phase("denoise")
    slot = max(weight_sizes(shapes.transformer, find_precision(plan.precision)).units)
    arena = slot * (plan.ring + len(plan.residents))
    assert phase.weights + phase.slots > arena
    assert peak - arena <= phase.activations <= 1.10 * (peak - arena)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
@pytest.mark.parametrize("size", BUCKETS, ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_step_peaks_at_most_ten_percent_below_its_plan(size: tuple[int, int], precision: str) -> None:
    sampling = SamplingConfig(num_sections=4)
    plan = planned(precision, size, 6, sampling)
    assert_exact(plan, measured_peak(plan, sampling))


@pytest.mark.parametrize("vram", [2.6, 11.9])
@pytest.mark.parametrize("card", ["RTX 3060", "RTX 4070"])
def test_the_plan_knows_where_fp8_weights_are_expanded(
    card: str, vram: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("isoframe.quant.fp8.multiplies_fp8", lambda *_: find_card(card).fp8 is not None)
    sampling = SamplingConfig(num_sections=4)
    plan = planned("fp8", (640, 608), vram, sampling, card=card, shapes=SHORT)
    assert_exact(plan, measured_peak(plan, sampling, shapes=SHORT), SHORT)


@pytest.mark.parametrize("vram", [2.6, 11.9])
def test_the_plan_knows_int8_attention(vram: float) -> None:
    sampling = SamplingConfig(num_sections=4)
    plan = planned("int8", (640, 608), vram, sampling, attention="int8")
    assert_exact(plan, measured_peak(plan, sampling, attention=CountedInt8Attention()))


@pytest.mark.parametrize("step_cache", STEP_CACHES)
@pytest.mark.parametrize("vram", [2.6, 11.9])
@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8", "int8-weight", "nf4"])
def test_the_plan_knows_every_format_and_step_cache(
    precision: str, vram: float, step_cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A change of 1 computes the step; numbers do not exist on the meta device.
    monkeypatch.setattr("isoframe.engine.sampling.step_cache.step_change", lambda *_: torch.tensor(1.0))
    sampling = SamplingConfig(num_sections=4, step_cache=step_cache, step_cache_retention=0.0)
    plan = planned(precision, (640, 608), vram, sampling, shapes=SHORT)
    assert_exact(plan, measured_peak(plan, sampling, shapes=SHORT, num_steps=2), SHORT)
