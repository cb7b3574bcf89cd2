"""What is computed once per job or section equals what is computed at every step, and is computed once."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rope_reference import rope_tables
from tiny_models import IMAGE_WIDTH, POOLED_WIDTH, TEXT_WIDTH, relative_error, saved_model

from isoframe.engine import Conditioning, Engine, SamplingConfig
from isoframe.engine.families.framepack import invariants, transformer
from isoframe.engine.families.framepack.invariants import ImageProjection, JobInvariants, TextRefiner
from isoframe.engine.families.framepack.layers import BlockContext
from isoframe.engine.families.framepack.transformer import PackedPass, PackedTransformer
from isoframe.engine.model.attention import SDPA_ATTENTION
from isoframe.engine.model.packing import PackedSection
from isoframe.engine.model.workspace import Workspace
from isoframe.engine.weights.memory import JobMemory

SAMPLING = SamplingConfig(num_sections=3, num_steps=6)


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    saved_model(tmp_path)
    return Engine.load(tmp_path)


@pytest.fixture
def conditioning() -> Conditioning:
    return Conditioning(
        text_embeds=torch.randn(1, 9, TEXT_WIDTH),
        text_mask=torch.arange(9)[None] < 7,
        pooled_embeds=torch.randn(1, POOLED_WIDTH),
        image_embeds=torch.randn(1, 5, IMAGE_WIDTH),
        start_latent=torch.randn(1, 16, 1, 8, 12),
    )


class RecomputedEveryStep:
    """Makes :meth:`PackedTransformer.step` redo the invariants of its job and section from their inputs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        prepare_job, pack_section = PackedTransformer.prepare_job, PackedTransformer.pack_section
        step = PackedTransformer.step
        job_args: list[tuple[Any, ...]] = []
        section_args: list[tuple[Any, ...]] = []

        def remember_job(self: PackedTransformer, *args: Any) -> JobInvariants:
            job_args.append(args)
            return prepare_job(self, *args)

        def remember_section(self: PackedTransformer, *args: Any) -> PackedSection:
            section_args.append(args)
            return pack_section(self, *args)

        def recompute(self: PackedTransformer, latents: torch.Tensor, index: int, *rest: Any) -> PackedPass:
            *_, context = rest
            timesteps, *others = job_args[-1]
            job = prepare_job(self, timesteps[index : index + 1], *others)
            self.num_recomputed = getattr(self, "num_recomputed", 0) + 1
            return step(self, latents, 0, job, pack_section(self, *section_args[-1]), context)

        monkeypatch.setattr(PackedTransformer, "prepare_job", remember_job)
        monkeypatch.setattr(PackedTransformer, "pack_section", remember_section)
        monkeypatch.setattr(PackedTransformer, "step", recompute)


def test_a_job_with_invariants_equals_one_that_recomputes_every_step(
    engine: Engine, conditioning: Conditioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = engine.sample_video(conditioning, SAMPLING)
    RecomputedEveryStep(monkeypatch)
    every_step = engine.sample_video(conditioning, SAMPLING)
    assert engine._denoiser.transformer.num_recomputed == 18  # type: ignore[attr-defined]  # set by the patch
    assert relative_error(once, every_step) <= 2e-5


@torch.inference_mode()
def test_one_forward_with_invariants_equals_one_without(engine: Engine, conditioning: Conditioning) -> None:
    model = engine._denoiser.transformer
    timesteps = torch.tensor([1000.0, 876.5, 226.0])
    text = (conditioning.text_embeds, conditioning.text_mask, conditioning.pooled_embeds)
    vision = model.project_image(conditioning.image_embeds)
    section = model.pack_section([], range(9), (9, 8, 12))
    context = model.context(engine._memory.units)
    latents = torch.randn(1, 16, 9, 8, 12)
    together = model.prepare_job(timesteps, 10_000.0, *text, vision)
    for i in range(3):
        alone = model.prepare_job(timesteps[i : i + 1], 10_000.0, *text, vision)
        actual = model.step(latents, i, together, section, context).compute()
        assert relative_error(actual, model.step(latents, 0, alone, section, context).compute()) <= 1e-6


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts calls of everything that must not run at every step."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts[f"{getattr(owner, '__name__', owner)}.{name}"] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counted)

    count(ImageProjection, "__call__")
    count(TextRefiner, "__call__")
    count(transformer, "modulation_table")
    count(transformer, "rope_axes")
    count(PackedTransformer, "pack_section")
    count(PackedTransformer, "step")
    return counts


def test_invariants_run_once_per_job_and_history_once_per_section(
    engine: Engine, conditioning: Conditioning, calls: Counter[str]
) -> None:
    engine.sample_video(conditioning, SAMPLING)
    assert calls == {
        "ImageProjection.__call__": 1,
        "TextRefiner.__call__": 1,
        "isoframe.engine.families.framepack.transformer.modulation_table": 1,
        "PackedTransformer.pack_section": 3,
        # One table a group (4x, 2x, 1x, noisy) and section.
        "isoframe.engine.families.framepack.transformer.rope_axes": 12,
        "PackedTransformer.step": 18,
    }


def test_true_guidance_prepares_two_branches_and_shares_the_image(
    engine: Engine, conditioning: Conditioning, calls: Counter[str]
) -> None:
    conditioning = replace(
        conditioning,
        negative_text_embeds=torch.randn(1, 3, TEXT_WIDTH),
        negative_text_mask=torch.ones(1, 3, dtype=torch.bool),
        negative_pooled_embeds=torch.randn(1, POOLED_WIDTH),
    )
    engine.sample_video(conditioning, replace(SAMPLING, cfg_scale=2.0))
    assert calls["ImageProjection.__call__"] == 1
    assert calls["TextRefiner.__call__"] == 2
    assert calls["PackedTransformer.step"] == 36
    assert calls["PackedTransformer.pack_section"] == 3


def block_context(token_chunk: int | None = None) -> BlockContext:
    cos, sin = rope_tables(range(3), (2, 2), (16, 24, 24), 256.0)
    return BlockContext(cos, sin, SDPA_ATTENTION, Workspace(), torch.float32, token_chunk)


@pytest.mark.parametrize("token_chunk", [None, 3])
def test_the_last_single_block_drops_only_rows_that_nothing_reads(
    engine: Engine, token_chunk: int | None
) -> None:
    model = engine._denoiser.transformer
    block, dim = model.single_blocks[-1], model.config.inner_dim
    unit = engine._memory.units.acquire(2 * model.config.num_layers + model.config.num_single_layers - 1)
    modulation = tuple(torch.randn(1, dim) for _ in range(3))
    tokens = torch.randn(1, 17, dim)
    context = block_context(token_chunk)
    noisy_only = block.last(tokens.clone(), unit, modulation, context, num_noisy=5)  # type: ignore[arg-type]  # three vectors
    block(tokens, unit, modulation, block_context())  # type: ignore[arg-type]  # three vectors
    assert relative_error(noisy_only, tokens[:, 7:12]) <= 1e-6


def test_token_chunks_change_nothing(
    engine: Engine, conditioning: Conditioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = SamplingConfig(num_sections=1, num_steps=2)
    whole = engine.sample_video(conditioning, sampling)
    monkeypatch.setattr(JobMemory, "place", lambda _: (engine._memory.units, 31))
    assert relative_error(engine.sample_video(conditioning, sampling), whole) <= 2e-6


def test_sinusoid_puts_cosines_first() -> None:
    embedding = invariants.sinusoid(torch.tensor([0.0, 1.0]))
    assert embedding[0].tolist() == [1.0] * 128 + [0.0] * 128
    assert embedding[1, 128] == pytest.approx(0.841471, abs=1e-6)
