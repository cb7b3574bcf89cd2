"""Whole jobs against a straight-line implementation over diffusers' class and a separately written sampler."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import unipc
from diffusers import HunyuanVideoFramepackTransformer3DModel
from published_schedule import TIMESTEPS_25
from straight_job import Job, Prompt, published_paddings, run_job
from tiny_models import IMAGE_WIDTH, POOLED_WIDTH, TEXT_WIDTH, relative_error, saved_model
from torch import Tensor

from isoframe.engine import (
    Conditioning,
    Engine,
    EngineConfig,
    Event,
    LatentSection,
    SamplingConfig,
    StepEvent,
)
from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.sampling.step_cache import MagCache

TOLERANCE = 5e-6
TEACACHE = {"step_cache": "teacache"}
GUIDED = {"cfg_scale": 3.0, "cfg_rescale": 0.6}

CASES = {
    "inverted-3": {"num_sections": 3},
    "inverted-3-teacache": {"num_sections": 3, **TEACACHE},
    "inverted-6-teacache": {"num_sections": 6, **TEACACHE},
    "forward-3": {"num_sections": 3, "order": "forward"},
    "forward-3-teacache": {"num_sections": 3, "order": "forward", **TEACACHE},
    "guided": {"num_sections": 2, **GUIDED},
    "guided-forward-teacache": {"num_sections": 2, "order": "forward", **GUIDED, **TEACACHE},
    "guided-without-rescale": {"num_sections": 2, "num_steps": 8, "cfg_scale": 2.0},
    "guided-below-one": {"num_sections": 1, "num_steps": 5, "cfg_scale": 0.0, "cfg_rescale": 1.0},
    "rescale-without-guidance": {"num_sections": 1, "num_steps": 5, "cfg_rescale": 0.5},
    "euler": {"num_sections": 2, "sampler": "euler"},
    "euler-teacache": {"num_sections": 2, "sampler": "euler", **TEACACHE},
    "bh2": {"num_sections": 2, "sampler": "unipc-bh2"},
    "one-step": {"num_sections": 2, "num_steps": 1, **TEACACHE},
    "two-steps": {"num_sections": 2, "num_steps": 2},
    "window-2": {"num_sections": 12, "latent_window_size": 2, "num_steps": 6},
    "window-3-forward": {"num_sections": 7, "latent_window_size": 3, "num_steps": 6, "order": "forward"},
    "window-1": {"num_sections": 5, "latent_window_size": 1, "num_steps": 4},
    "paddings": {"num_sections": 4, "num_steps": 6, "latent_paddings": (1, 5, 2, 0)},
    "seed-and-guidance": {"num_sections": 2, "num_steps": 6, "seed": 7, "guidance_scale": 6.0},
    "eager-teacache": {"num_sections": 2, **TEACACHE, "step_cache_threshold": 0.3},
}


class Subject:
    """One transformer, loaded by diffusers' class and by the engine, and conditioning for it."""

    def __init__(self, folder: Path, latent_size: tuple[int, int] = (4, 6)) -> None:
        self.model: HunyuanVideoFramepackTransformer3DModel = saved_model(folder, seed=1)
        self.engine = Engine.load(folder, config=EngineConfig(device="cpu"))
        generator = torch.Generator().manual_seed(3)

        def draw(*shape: int) -> Tensor:
            return torch.randn(1, *shape, generator=generator)

        def prompt(length: int, valid: int) -> Prompt:
            mask = torch.arange(length)[None] < valid
            return Prompt(text=draw(length, TEXT_WIDTH), mask=mask, pooled=draw(POOLED_WIDTH))

        self.positive, self.negative = prompt(9, 6), prompt(7, 3)
        self.image_embeds = draw(5, IMAGE_WIDTH)
        self.start_latent = draw(16, 1, *latent_size)

    def conditioning(self, sampling: SamplingConfig) -> Conditioning:
        is_guided = sampling.cfg_scale != 1.0
        return Conditioning(
            text_embeds=self.positive.text,
            text_mask=self.positive.mask,
            pooled_embeds=self.positive.pooled,
            image_embeds=self.image_embeds,
            start_latent=self.start_latent,
            negative_text_embeds=self.negative.text if is_guided else None,
            negative_text_mask=self.negative.mask if is_guided else None,
            negative_pooled_embeds=self.negative.pooled if is_guided else None,
        )

    def job(self, sampling: SamplingConfig) -> Job:
        return Job(
            positive=self.positive,
            negative=self.negative,
            image_embeds=self.image_embeds,
            start_latent=self.start_latent,
            num_sections=sampling.num_sections,
            num_steps=sampling.num_steps,
            order=sampling.order,
            guidance_scale=sampling.guidance_scale,
            cfg_scale=sampling.cfg_scale,
            cfg_rescale=sampling.cfg_rescale,
            seed=sampling.seed,
            window=sampling.latent_window_size,
            sampler=sampling.sampler,
            teacache_threshold=sampling.step_cache_threshold if sampling.step_cache == "teacache" else None,
            paddings=sampling.latent_paddings,
        )

    def run(self, sampling: SamplingConfig) -> tuple[Tensor, list[StepEvent]]:
        events: list[Event] = []
        video = self.engine.sample_video(self.conditioning(sampling), sampling, on_event=events.append)
        return video, [event for event in events if isinstance(event, StepEvent)]


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tmp_path_factory.mktemp("transformer"))


@pytest.mark.parametrize("options", CASES.values(), ids=list(CASES))
def test_job_equals_straight_line_job(subject: Subject, options: dict[str, Any]) -> None:
    sampling = SamplingConfig(**options)
    expected, decisions = run_job(subject.model, subject.job(sampling))
    actual, steps = subject.run(sampling)
    assert actual.dtype == torch.float32
    assert actual.shape == expected.shape
    assert relative_error(actual, expected) <= TOLERANCE
    if decisions and sampling.cfg_scale == 1.0:
        assert [step.is_computed for step in steps] == decisions


@pytest.mark.parametrize("num_steps", [25, 50, 100])
def test_job_at_the_published_shift_equals_straight_line_job(
    subject: Subject, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise levels of 13680 tokens, whose shift is 7: more steps between them cancel more."""
    published = functools.partial(unipc.schedule, num_tokens=13680)
    monkeypatch.setattr("isoframe.engine.sampling.denoiser.sigma_schedule", lambda steps, _: published(steps))
    sampling = SamplingConfig(num_sections=1, num_steps=num_steps)
    actual, _ = subject.run(sampling)
    monkeypatch.setattr(unipc, "schedule", lambda steps, _: published(steps))
    expected, _ = run_job(subject.model, subject.job(sampling))
    assert relative_error(actual, expected) <= TOLERANCE


def test_odd_token_grid_equals_straight_line_job(tmp_path: Path) -> None:
    """5 x 7 tokens: every pooled group is padded."""
    subject = Subject(tmp_path, latent_size=(10, 14))
    sampling = SamplingConfig(num_sections=2, num_steps=6)
    expected, _ = run_job(subject.model, subject.job(sampling))
    assert relative_error(subject.run(sampling)[0], expected) <= TOLERANCE


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_float64_coefficients_give_another_video(subject: Subject, order: str) -> None:
    """The published sampler computes its coefficients in fp32, and that is part of its result.

    At 25 steps the first ones are close together: h is 0.006, and (e^z - 1)/z - 1 divided by z again and again keeps
    few digits in fp32. Float64 keeps them, so its video is a little different: by more than the tolerance above and
    by less than can be seen.
    """
    sampling = SamplingConfig(num_sections=3, order=order)
    exact_job = dataclasses.replace(subject.job(sampling), coefficients=torch.float64)
    exact, _ = run_job(subject.model, exact_job)
    error = relative_error(subject.run(sampling)[0], exact)
    assert TOLERANCE < error <= 5e-4


def test_straight_line_job_feels_every_choice(subject: Subject) -> None:
    """Each mistake in the flow would show: it moves the result by far more than the tolerance."""
    job = subject.job(SamplingConfig(num_sections=5, num_steps=4))
    expected, _ = run_job(subject.model, job)
    mistakes = {
        "no special paddings": {"paddings": (4, 3, 2, 1, 0)},
        "seed": {"seed": 0},
        "guidance": {"guidance_scale": 9.0},
        "order": {"order": "forward"},
        "sampler": {"sampler": "unipc-bh2"},
        "start": {"start_latent": job.start_latent + 0.01},
        "image": {"image_embeds": 1.01 * job.image_embeds},
        "pooled": {"positive": dataclasses.replace(job.positive, pooled=1.01 * job.positive.pooled)},
    }
    assert published_paddings(5) == (3, 2, 2, 1, 0)
    for changes in mistakes.values():
        wrong, _ = run_job(subject.model, dataclasses.replace(job, **changes))
        assert relative_error(wrong, expected) > 10 * TOLERANCE


@pytest.mark.parametrize(
    ("skips", "options"),
    [
        ({1, 2, 3, 5}, {}),
        ({2, 4, 5, 6}, {"order": "forward"}),
        ({1, 3, 4, 6}, GUIDED),
    ],
    ids=["inverted", "forward", "guided"],
)
def test_scheduled_steps_add_the_last_residual(
    subject: Subject, skips: set[int], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = SamplingConfig(num_sections=2, num_steps=7, **options)
    schedule = tuple(step in skips for step in range(7))
    monkeypatch.setattr(subject.engine._denoiser, "step_caches", lambda _: MagCache(schedule))
    job = dataclasses.replace(subject.job(sampling), skips=frozenset(skips))
    expected, _ = run_job(subject.model, job)
    actual, steps = subject.run(sampling)
    assert relative_error(actual, expected) <= TOLERANCE
    assert [step.is_computed for step in steps] == [not is_skipped for is_skipped in schedule] * 2


def test_teacache_cases_skip_and_compute(subject: Subject) -> None:
    """The parity above says something about skipped steps only if there are some, and not the same everywhere."""
    for order in ("inverted", "forward"):
        _, decisions = run_job(
            subject.model, subject.job(SamplingConfig(num_sections=3, order=order, **TEACACHE))
        )
        per_section = [decisions[25 * i : 25 * (i + 1)] for i in range(3)]
        for section in per_section:
            assert section[0]
            assert section[-1]
            assert 9 <= sum(section) <= 22


def tipping_threshold(subject: Subject, sampling: SamplingConfig) -> float:
    """The distance that TeaCache sees at the second step: above this threshold it skips the step."""
    job = subject.job(sampling)
    computes, skips = 0.05, 0.8
    while skips - computes > 2e-5:
        middle = (computes + skips) / 2
        _, decisions = run_job(subject.model, dataclasses.replace(job, teacache_threshold=middle))
        computes, skips = (middle, skips) if decisions[1] else (computes, middle)
    return computes


@pytest.mark.parametrize("num_steps", [6, 8, 14])
def test_teacache_measures_the_same_distance(subject: Subject, num_steps: int) -> None:
    """A thousandth below the distance the step is computed, a thousandth above it is skipped."""
    sampling = SamplingConfig(num_sections=1, num_steps=num_steps, **TEACACHE)
    distance = tipping_threshold(subject, sampling)
    for threshold, is_computed in ((0.999 * distance, True), (1.001 * distance, False)):
        _, steps = subject.run(dataclasses.replace(sampling, step_cache_threshold=threshold))
        assert steps[1].is_computed is is_computed


@pytest.mark.parametrize(("order", "first_frames"), [("inverted", (19, 10, 1)), ("forward", (1, 10, 19))])
def test_sections_come_in_generation_order_and_join_to_the_video(
    subject: Subject, order: str, first_frames: tuple[int, ...]
) -> None:
    sampling = SamplingConfig(num_sections=3, num_steps=2, order=order)
    conditioning = subject.conditioning(sampling)
    sections: list[LatentSection] = list(subject.engine.sample(conditioning, sampling))
    video = subject.engine.sample_video(conditioning, sampling)
    assert [section.index for section in sections] == [0, 1, 2]
    assert tuple(section.first_latent_frame for section in sections) == first_frames
    assert video.shape == (1, 16, 28, 4, 6)
    assert torch.equal(video[:, :, :1], subject.start_latent)
    for section in sections:
        assert section.latents.shape == (1, 16, 9, 4, 6)
        at = section.first_latent_frame
        assert torch.equal(video[:, :, at : at + 9], section.latents)


def test_jobs_leave_nothing_behind(subject: Subject) -> None:
    """One engine, one job after the other, another one abandoned between them."""
    first = SamplingConfig(num_sections=2, num_steps=6, **TEACACHE)
    other = SamplingConfig(num_sections=3, num_steps=4, order="forward", **GUIDED)
    before, _ = subject.run(first)
    next(iter(subject.engine.sample(subject.conditioning(other), other)))
    assert torch.equal(subject.run(first)[0], before)


def test_conditioning_is_not_changed(subject: Subject) -> None:
    sampling = SamplingConfig(num_sections=2, num_steps=2, **GUIDED)
    plain = subject.conditioning(sampling)
    conditioning = dataclasses.replace(
        plain, section_prompts=plain.prompts(2), end_latent=plain.start_latent.clone()
    )

    def tensors() -> list[Tensor]:
        values = [getattr(conditioning, field.name) for field in dataclasses.fields(conditioning)]
        prompts = [
            getattr(prompt, field.name)
            for prompt in conditioning.section_prompts
            for field in dataclasses.fields(prompt)
        ]
        return [value for value in [*values, *prompts] if isinstance(value, Tensor)]

    before = [tensor.clone() for tensor in tensors()]
    subject.engine.sample_video(conditioning, sampling)
    assert len(before) == 9 + 6
    assert all(torch.equal(*pair) for pair in zip(tensors(), before, strict=True))


def silent_engine(folder: Path, precision: str) -> Engine:
    """An engine whose transformer answers zero: after one step the latents are what the model was given."""
    model = saved_model(folder)
    model.proj_out.weight.zero_()
    model.proj_out.bias.zero_()
    model.save_pretrained(folder)
    return Engine.load(folder, config=EngineConfig(device="cpu", precision=precision))


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_noise_is_drawn_per_section_and_rounded_in_bf16_only(
    tmp_path: Path, subject: Subject, order: str, precision: str, dtype: torch.dtype
) -> None:
    engine = silent_engine(tmp_path, precision)
    sampling = SamplingConfig(num_sections=3, num_steps=1, order=order, seed=11)
    generator = torch.Generator().manual_seed(11)
    for section in engine.sample(subject.conditioning(sampling), sampling):
        noise = torch.randn(1, 16, 9, 4, 6, generator=generator)
        assert torch.equal(section.latents, noise.to(dtype).float())


class JobStoppedError(Exception):
    """Ends a job and carries out of it what the transformer was given."""


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_scalars_are_rounded_in_bf16_only(
    tmp_path: Path, subject: Subject, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At 62 x 64 latents the shift is 7, and 25 steps have the published timesteps."""

    def spy(self: PackedTransformer, timesteps: Tensor, guidance: float, *args: Any, **kwargs: Any) -> None:
        raise JobStoppedError(timesteps.clone(), guidance)

    monkeypatch.setattr(PackedTransformer, "prepare_job", spy)
    engine = silent_engine(tmp_path, precision)
    sampling = SamplingConfig(num_sections=1)
    start_latent = torch.zeros(1, 16, 1, 62, 64)
    conditioning = dataclasses.replace(subject.conditioning(sampling), start_latent=start_latent)
    with pytest.raises(JobStoppedError) as caught:
        next(iter(engine.sample(conditioning, sampling)))
    timesteps, guidance = caught.value.args
    if precision == "bf16":
        assert tuple(timesteps.tolist()) == TIMESTEPS_25
        assert guidance == 9984
    else:
        assert torch.equal(timesteps, 1000 * unipc.schedule(25, 9000)[:-1])
        assert guidance == 10_000
