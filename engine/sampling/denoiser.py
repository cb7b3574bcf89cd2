"""Latents in, latents out: the section loop and the step loop."""

import bisect
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ..checkpoints.lora import Lora, LoraLibrary
from ..errors import InputError, NumericalError
from ..events import Event, PhaseEvent, StepEvent
from ..families.framepack.invariants import JobInvariants
from ..families.framepack.packing import ContextGroup, PackedSection
from ..families.framepack.transformer import PackedTransformer
from ..families.framepack.units import unit_specs
from ..families.registry import family_of
from ..model.attention import SDPA_ATTENTION, SelfAttention
from ..model.attention_backends import AttentionShape
from ..model.conditioning import Anchor, Conditioning, PromptEmbeds
from ..model.lora_layers import branch_bytes
from ..request.config import SamplingConfig
from ..request.schedule import Level
from ..request.sections import SectionPlan, plan_sections
from ..weights.memory import JobMemory
from .codebook import Codebook
from .history import History, JobNoise, SampledSections
from .sampler import Sampler, make_sampler, sigma_schedule
from .step_cache import StepCache, StepCacheFactory, make_step_cache

_logger = logging.getLogger(__name__)

EventHandler = Callable[[Event], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LatentSection:
    """Latents of one finished section.

    Attributes:
        index: position in generation order, from 0.
        first_latent_frame: position in the video; the start latent is 0.
        latents: [1, C, window, Y, X] fp32 on the CPU; never the start latent.
        generator_state: of the job's noise once this section has drawn its own, uint8.
    """

    index: int
    first_latent_frame: int
    latents: Tensor
    generator_state: Tensor


@dataclass(frozen=True, slots=True)
class _Branch:
    """The conditional or the negative pass of one section."""

    transformer: PackedTransformer
    job: JobInvariants
    cache: StepCache


@dataclass(frozen=True, slots=True)
class _Model:
    """What a section samples with: the transformer with the LoRAs at work, and what is computed once for a prompt."""

    loras: list[tuple[Lora, float]]
    prompt: PromptEmbeds
    anchor: Anchor
    transformer: PackedTransformer
    jobs: list[JobInvariants]

    def serves(self, loras: list[tuple[Lora, float]], prompt: PromptEmbeds) -> bool:
        """Whether a section with these samples with this, whatever its anchor is."""
        return self.loras == loras and self.prompt is prompt

    @torch.inference_mode()
    def anchored(self, anchor: Anchor) -> "_Model":
        """The same with another image in view; nothing else depends on it."""
        vision = self.transformer.project_image(anchor.image_embeds)
        return replace(self, anchor=anchor, jobs=[replace(job, vision_tokens=vision) for job in self.jobs])


class Denoiser:
    """Samples the sections of a job with one transformer.

    Attributes:
        transformer: the model.
        step_caches: makes the step cache of every branch and section.
        loras: what the jobs' LoRAs are looked up in.
    """

    def __init__(
        self,
        transformer: PackedTransformer,
        choose_attention: Callable[[AttentionShape], SelfAttention] = lambda _: SDPA_ATTENTION,
        step_caches: StepCacheFactory = make_step_cache,
        check_attention: Callable[[AttentionShape], None] = lambda _: None,
    ) -> None:
        """Sample with ``transformer``; ``choose_attention`` is asked at the start of every job, and may refuse its shape.

        ``check_attention`` refuses the same shapes, and measures nothing.
        """
        self.transformer = transformer
        self._choose_attention = choose_attention
        self._check_attention = check_attention
        self.step_caches = step_caches
        self.loras = LoraLibrary(transformer.layer_shapes, family_of(transformer.config).lora_aliases())

    def sample(
        self,
        conditioning: Conditioning,
        sampling: SamplingConfig,
        on_event: EventHandler | None = None,
        memory: JobMemory | None = None,
        resume: SampledSections | None = None,
    ) -> Iterator[LatentSection]:
        """Yield every section that is not finished, in generation order.

        Args:
            conditioning: embeddings and start latent.
            sampling: how to sample.
            on_event: called with a :class:`StepEvent` after each step, and when a phase begins.
            memory: places the units before every section; None leaves them where they are.
            resume: what is finished of a job that was stopped.

        Raises:
            ConfigError: the step cache cannot work with this checkpoint, or a LoRA is missing.
            CheckpointError: a LoRA does not fit the checkpoint.
            InputError: a tensor does not fit the checkpoint.
            DeviceError: the configured attention does not run at this size.
            NumericalError: latents became NaN or infinite.
        """
        conditioning.check(self.transformer.config, sampling.cfg_scale)
        if conditioning.end_latent is not None and sampling.order != "inverted":
            raise InputError(
                f"end_latent must be None with order={sampling.order!r}; it needs order='inverted'"
            )
        conditioning.anchors(sampling.guide_places)
        self.check(sampling)
        choose = partial(self._choose_attention, self._shape_of(conditioning, sampling))
        attention = choose() if memory is None else memory.attempt("prepare", choose)
        sections = self._sections(
            conditioning, sampling, attention, on_event or _ignore, memory, resume or SampledSections()
        )
        return sections if memory is None else _giving_back(sections, memory)

    def check(self, sampling: SamplingConfig) -> None:
        """Raise an error where the step cache or a LoRA cannot work with this checkpoint; reads the LoRAs."""
        self.step_caches(sampling)
        if sampling.history_codebook is not None:
            Codebook.load(sampling.history_codebook)
        for lora in sampling.loras:
            self.loras.find(lora.source)

    def check_attention(
        self, sampling: SamplingConfig, size: tuple[int, int], num_condition_tokens: int
    ) -> None:
        """Raise :class:`DeviceError` where the configured attention does not run, before anything is encoded.

        Args:
            sampling: of the job.
            size: (height, width) in pixels.
            num_condition_tokens: of image and prompt, at most.
        """
        latent_size = size[0] // 8, size[1] // 8
        self._check_attention(self._attention_shape(sampling, latent_size, num_condition_tokens))

    def lora_bytes(self, sampling: SamplingConfig) -> int:
        """Most memory that the LoRAs of a job take on the device; reads them."""
        sections = [self._active(sampling, section) for section in range(sampling.num_sections)]
        distinct = {tuple((id(lora), strength) for lora, strength in loras): loras for loras in sections}
        return max(
            branch_bytes(unit_specs(self.transformer.config), loras, self.transformer.dtype)
            for loras in distinct.values()
        )

    def _active(self, sampling: SamplingConfig, section: int) -> list[tuple[Lora, float]]:
        """The LoRAs at work in ``section``, each with its strength."""
        uses = [use for use in sampling.loras if use.is_active(section)]
        return [(self.loras.find(use.source), use.strength) for use in uses]

    def _sections(
        self,
        conditioning: Conditioning,
        sampling: SamplingConfig,
        attention: SelfAttention,
        report: EventHandler,
        memory: JobMemory | None,
        resume: SampledSections,
    ) -> Iterator[LatentSection]:
        batch, channels, _, height, width = conditioning.start_latent.shape
        shape = (batch, channels, sampling.latent_window_size, height, width)
        sigmas = sigma_schedule(sampling.num_steps, shape[2] * height * width // 4)
        job_noise = JobNoise(sampling.seed, shape, resume)
        plans = plan_sections(sampling)
        history = History.of_job(conditioning, sampling, plans, resume)
        # All are found before the first section: a file may change while the job runs.
        active = [self._active(sampling, section) for section in range(sampling.num_sections)]
        prompts = conditioning.prompts(sampling.num_sections)
        anchors = conditioning.anchors(sampling.guide_places)
        model: _Model | None = None
        for section in plans[resume.num_sections :]:
            loras, prompt = active[section.index], prompts[section.index]
            anchor = anchors[bisect.bisect(sampling.guide_places, section.place)]
            if model is not None and not model.serves(loras, prompt):
                # There may not be room for the old and the new LoRAs, nor for the old and the new tables.
                model = None
            if model is None or model.anchor is not anchor:
                report(PhaseEvent(phase="prepare"))
                # Nor for units beside what is computed once.
                if memory is not None:
                    memory.make_room()
                prepare = partial(self._prepare, loras, prompt, anchor, conditioning, sampling, sigmas)
                if model is not None:
                    prepare = partial(model.anchored, anchor)
                model = prepare() if memory is None else memory.attempt("prepare", prepare)
            report(PhaseEvent(phase="pack"))
            noise = job_noise.draw()
            # Jobs of one engine may take turns, section by section.
            self.transformer.self_attention = attention
            seen = history.groups(section, None if anchor is anchors[0] else anchor.latent)
            latents = _run_within(
                memory, partial(self._run_section, noise, sigmas, seen, model, section, sampling, report)
            )
            history.append(section, latents)
            _logger.info("section %d of %d sampled", section.index + 1, sampling.num_sections)
            yield LatentSection(
                index=section.index,
                first_latent_frame=section.first_latent_frame,
                latents=latents,
                generator_state=job_noise.state(),
            )

    @torch.inference_mode()
    def _run_section(
        self,
        noise: Tensor,
        sigmas: Tensor,
        seen: list[ContextGroup],
        model: _Model,
        section: SectionPlan,
        sampling: SamplingConfig,
        report: EventHandler,
    ) -> Tensor:
        """Latents of one section on the CPU, fp32."""
        transformer = model.transformer.settled_as(self.transformer)
        transformer.self_attention.reset()
        _, _, frames, height, width = noise.shape
        packed = transformer.pack_section(seen, section.latent_indices, (frames, height, width))
        branches = [_Branch(transformer, job, self.step_caches(sampling)) for job in model.jobs]
        report(PhaseEvent(phase="denoise"))
        latents = self._denoise(noise, sigmas, packed, branches, section, sampling, report)
        # A tensor made in inference mode cannot be used outside in every way.
        with torch.inference_mode(False):
            return latents.clone()

    def _shape_of(self, conditioning: Conditioning, sampling: SamplingConfig) -> AttentionShape:
        """The joint self-attention of every step of the job."""
        height, width = conditioning.start_latent.shape[3:]
        prompts = set(conditioning.prompts(sampling.num_sections))
        num_text = max(int((prompt.text_mask != 0).sum()) for prompt in prompts)
        num_condition_tokens = num_text + conditioning.image_embeds.shape[1]
        return self._attention_shape(sampling, (height, width), num_condition_tokens)

    def _attention_shape(
        self, sampling: SamplingConfig, latent_size: tuple[int, int], num_condition_tokens: int
    ) -> AttentionShape:
        plans = plan_sections(sampling)
        num_noisy = Level(sampling.latent_window_size, 1).num_tokens(latent_size)
        num_latent = num_noisy + max(section.seen.num_tokens(latent_size) for section in plans)
        config = self.transformer.config
        return AttentionShape(
            num_tokens=num_latent + num_condition_tokens,
            num_heads=config.num_attention_heads,
            head_dim=config.attention_head_dim,
            dtype=self.transformer.dtype,
        )

    @torch.inference_mode()
    def _prepare(
        self,
        loras: list[tuple[Lora, float]],
        prompt: PromptEmbeds,
        anchor: Anchor,
        conditioning: Conditioning,
        sampling: SamplingConfig,
        sigmas: Tensor,
    ) -> _Model:
        """The transformer with ``loras``; invariants of the conditional branch and, with true guidance, of the negative."""
        transformer = self.transformer.with_loras(loras)
        timesteps = self._round_time(sigmas[:-1] * 1000)
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = self._round_time(
                torch.tensor(sampling.guidance_scale * 1000, dtype=torch.float32)
            ).item()
        vision = transformer.project_image(anchor.image_embeds)
        texts = [(prompt.text_embeds, prompt.text_mask, prompt.pooled_embeds)]
        if sampling.cfg_scale != 1.0:
            embeds, mask = conditioning.negative_text_embeds, conditioning.negative_text_mask
            pooled = conditioning.negative_pooled_embeds
            # Conditioning.check has seen to it.
            assert embeds is not None
            assert mask is not None
            assert pooled is not None
            texts.append((embeds, mask, pooled))
        jobs = [transformer.prepare_job(timesteps, guidance, *text, vision) for text in texts]
        return _Model(loras, prompt, anchor, transformer, jobs)

    def _denoise(
        self,
        noise: Tensor,
        sigmas: Tensor,
        packed: PackedSection,
        branches: list[_Branch],
        section: SectionPlan,
        sampling: SamplingConfig,
        report: EventHandler,
    ) -> Tensor:
        """Latents of one section on the CPU, fp32."""
        sampler: Sampler = make_sampler(sampling.sampler, sigmas)
        latents = noise.to(self.transformer.device)
        was_finite: Tensor | None = None
        for step, sigma in enumerate(sigmas[:-1].tolist()):
            model_input = self._round_latents(latents)
            x0 = model_input - sigma * self._velocity(model_input, step, packed, branches, sampling)
            latents = sampler.update(latents, x0, step)
            # One step late: the device has this step queued while the host waits for the answer.
            self._check_finite(was_finite, section.index, step - 1)
            was_finite = x0.isfinite().all()
            report(_step_event(section, step, branches[0], sampling, x0))
        self._check_finite(was_finite, section.index, sampling.num_steps - 1)
        return latents.cpu()

    def _velocity(
        self,
        latents: Tensor,
        step: int,
        packed: PackedSection,
        branches: list[_Branch],
        sampling: SamplingConfig,
    ) -> Tensor:
        """Velocity of one step, fp32; two branches are combined by true guidance."""
        velocities = [
            branch.cache.velocity(step, branch.transformer.step(latents, step, branch.job, packed)).float()
            for branch in branches
        ]
        conditional = velocities[0]
        if len(velocities) == 1:
            return conditional
        negative = velocities[1]
        guided = negative + sampling.cfg_scale * (conditional - negative)
        if sampling.cfg_rescale == 0:
            return guided
        rescaled = guided * (conditional.std() / guided.std())
        return sampling.cfg_rescale * rescaled + (1 - sampling.cfg_rescale) * guided

    def _check_finite(self, is_finite: Tensor | None, section: int, step: int) -> None:
        if is_finite is None or bool(is_finite):
            return
        attention = self.transformer.self_attention.name
        raise NumericalError(
            f"latents of section {section + 1} became NaN or infinite at step {step + 1} (attention: {attention}); "
            "check the model's files, and below fp32 try precision='fp32' (--precision fp32)",
            section=section,
            step=step,
            backend=attention,
        )

    def _round_time(self, values: Tensor) -> Tensor:
        """Timesteps and guidance as the model was given them: bf16 values wherever activations are 16 bit."""
        return values if self.transformer.dtype == torch.float32 else values.to(torch.bfloat16).float()

    def _round_latents(self, latents: Tensor) -> Tensor:
        """The sampler's latents as the transformer takes them: bf16 values where the residual stream is bf16."""
        return latents.to(self.transformer.residual_dtype).float()


def assemble(sections: list[LatentSection], start_latent: Tensor) -> Tensor:
    """All latents of a job in video order, the start latent first: [1, C, 1 + n * window, Y, X] on the CPU."""
    ordered = sorted(sections, key=lambda section: section.first_latent_frame)
    return torch.cat([start_latent.float().cpu(), *(section.latents for section in ordered)], dim=2)


def _giving_back(sections: Iterator[LatentSection], memory: JobMemory) -> Iterator[LatentSection]:
    """The sections; slots and residents are given up at the end, also where the job is cancelled or fails."""
    try:
        yield from sections
    finally:
        memory.make_room()


def _run_within(memory: JobMemory | None, run: Callable[[], Tensor]) -> Tensor:
    """The latents of a section, with the units where the job wants them."""
    if memory is None:
        return run()
    memory.place()
    return memory.attempt("denoise", run, before_retry=memory.place)


def _ignore(event: object) -> None:
    """Nobody listens."""


def _step_event(
    section: SectionPlan, step: int, branch: _Branch, sampling: SamplingConfig, x0: Tensor
) -> StepEvent:
    return StepEvent(
        section=section.index,
        num_sections=sampling.num_sections,
        step=step,
        num_steps=sampling.num_steps,
        is_computed=branch.cache.was_computed,
        first_latent_frame=section.first_latent_frame,
        x0=x0,
    )
