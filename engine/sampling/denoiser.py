"""Latents in, latents out: the section loop and the step loop."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..checkpoints.lora import ActiveLoras, LoraLibrary
from ..errors import InputError, NumericalError
from ..events import EventHandler, PhaseEvent, StepEvent
from ..families.registry import family_of
from ..families.transformer_base import PreparedJob, StepContext, Transformer
from ..model.attention import SDPA_ATTENTION, SelfAttention
from ..model.attention_backends import AttentionShape
from ..model.conditioning import Conditioning
from ..model.lora_layers import branch_bytes
from ..model.packing import ContextGroup, PackedSection
from ..request.config import SamplingConfig
from ..request.schedule import Level
from ..request.sections import SectionPlan, plan_sections
from ..weights.memory import JobMemory, UnplannedMemory
from .codebook import Codebook
from .history import History, JobNoise, SampledSections
from .preparation import Preparation, SectionMemory
from .sampler import Sampler, make_sampler, sigma_schedule
from .step_cache import StepCache, StepCacheFactory, make_step_cache

_logger = logging.getLogger(__name__)


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

    invariants: PreparedJob
    cache: StepCache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Job:
    """What the sections of a job share.

    Attributes:
        sampling: how to sample.
        sigmas: noise levels [num_steps + 1], the last one 0.
        attention: of every step.
        memory: places the units.
        prepared: what the section at work samples with.
        report: called with every event.
    """

    sampling: SamplingConfig
    sigmas: Tensor
    attention: SelfAttention
    memory: SectionMemory
    prepared: Preparation
    report: EventHandler


class Denoiser:
    """Samples the sections of a job with one transformer.

    Attributes:
        transformer: the model.
        step_caches: makes the step cache of every branch and section.
        loras: what the jobs' LoRAs are looked up in.
    """

    def __init__(
        self,
        transformer: Transformer,
        choose_attention: Callable[[AttentionShape], SelfAttention] = lambda _: SDPA_ATTENTION,
        step_caches: StepCacheFactory = make_step_cache,
    ) -> None:
        """Sample with ``transformer``; ``choose_attention`` is asked at the start of every job, and may refuse its shape."""
        self.transformer = transformer
        self._choose_attention = choose_attention
        self.step_caches = step_caches
        self.loras = LoraLibrary(transformer.layer_shapes, family_of(transformer.config).lora_aliases())

    def sample(
        self,
        conditioning: Conditioning,
        sampling: SamplingConfig,
        on_event: EventHandler | None = None,
        memory: JobMemory | None = None,
        resume: SampledSections | None = None,
        choose_attention: Callable[[AttentionShape], SelfAttention] | None = None,
    ) -> Iterator[LatentSection]:
        """Yield every section that is not finished, in generation order.

        Args:
            conditioning: embeddings and start latent.
            sampling: how to sample.
            on_event: called with a :class:`StepEvent` after each step, and when a phase begins.
            memory: places the units before every section; None leaves them where they are.
            resume: what is finished of a job that was stopped.
            choose_attention: of this job; None is what the denoiser was given.

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
        placed = memory or UnplannedMemory(self.transformer.units)
        choose = partial(choose_attention or self._choose_attention, self._shape_of(conditioning, sampling))
        attention = placed.attempt("prepare", choose)
        batch, channels, _, height, width = conditioning.start_latent.shape
        shape = (batch, channels, sampling.latent_window_size, height, width)
        sigmas = sigma_schedule(sampling.num_steps, shape[2] * height * width // 4)
        # All are found before the first section: a file may change while the job runs.
        loras = [self._active(sampling, section) for section in range(sampling.num_sections)]
        report = on_event or _ignore
        job = _Job(
            sampling=sampling,
            sigmas=sigmas,
            attention=attention,
            memory=placed,
            prepared=Preparation(self.transformer, conditioning, sampling, sigmas, loras, placed, report),
            report=report,
        )
        return self._sections(job, conditioning, shape, resume or SampledSections())

    def check(self, sampling: SamplingConfig) -> None:
        """Raise an error where the step cache or a LoRA cannot work with this checkpoint; reads the LoRAs."""
        self.step_caches(sampling)
        if sampling.history_codebook is not None:
            Codebook.load(sampling.history_codebook)
        for lora in sampling.loras:
            self.loras.find(lora.source)

    def lora_bytes(self, sampling: SamplingConfig) -> int:
        """Most memory that the LoRAs of a job take on the device; reads them."""
        sections = [self._active(sampling, section) for section in range(sampling.num_sections)]
        distinct = {tuple((id(lora), strength) for lora, strength in loras): loras for loras in sections}
        return max(
            branch_bytes(self.transformer.unit_specs, loras, self.transformer.dtype)
            for loras in distinct.values()
        )

    def _active(self, sampling: SamplingConfig, section: int) -> ActiveLoras:
        """The LoRAs at work in ``section``, each with its strength."""
        uses = [use for use in sampling.loras if use.is_active(section)]
        return [(self.loras.find(use.source), use.strength) for use in uses]

    def _sections(
        self, job: _Job, conditioning: Conditioning, shape: tuple[int, ...], resume: SampledSections
    ) -> Iterator[LatentSection]:
        """The sections that are not finished; slots and residents are given up at the end, also of a job that fails."""
        plans = plan_sections(job.sampling)
        try:
            history = History.of_job(conditioning, job.sampling, plans, resume)
            noise = JobNoise(job.sampling.seed, shape, resume)
            for section in plans[resume.num_sections :]:
                job.prepared.settle(section)
                job.report(PhaseEvent(phase="pack"))
                seen = history.groups(section, job.prepared.guide)
                latents = job.memory.attempt(
                    "denoise", partial(self._run_section, noise.draw(), section, seen, job)
                )
                history.append(section, latents)
                _logger.info("section %d of %d sampled", section.index + 1, job.sampling.num_sections)
                yield LatentSection(
                    index=section.index,
                    first_latent_frame=section.first_latent_frame,
                    latents=latents,
                    generator_state=noise.state(),
                )
        finally:
            job.memory.make_room()

    @torch.inference_mode()
    def _run_section(
        self, noise: Tensor, section: SectionPlan, seen: list[ContextGroup], job: _Job
    ) -> Tensor:
        """Latents of one section on the CPU, fp32."""
        transformer = job.prepared.transformer
        units, token_chunk = job.memory.place()
        context = transformer.context(units, job.attention, token_chunk)
        context.attention.reset()
        _, _, frames, height, width = noise.shape
        packed = transformer.pack_section(seen, section.latent_indices, (frames, height, width))
        branches = [
            _Branch(invariants, self.step_caches(job.sampling)) for invariants in job.prepared.invariants
        ]
        job.report(PhaseEvent(phase="denoise"))
        latents = self._denoise(noise, packed, branches, context, section, job)
        # A tensor made in inference mode cannot be used outside in every way.
        with torch.inference_mode(False):
            return latents.clone()

    def _shape_of(self, conditioning: Conditioning, sampling: SamplingConfig) -> AttentionShape:
        """The joint self-attention of every step of the job."""
        height, width = conditioning.start_latent.shape[3:]
        prompts = set(conditioning.prompts(sampling.num_sections))
        num_text = max(int((prompt.text_mask != 0).sum()) for prompt in prompts)
        num_condition_tokens = num_text + conditioning.image_embeds.shape[1]
        return self.attention_shape(sampling, (8 * height, 8 * width), num_condition_tokens)

    def attention_shape(
        self, sampling: SamplingConfig, size: tuple[int, int], num_condition_tokens: int
    ) -> AttentionShape:
        """The joint self-attention of every step of a job.

        Args:
            sampling: of the job.
            size: (height, width) in pixels.
            num_condition_tokens: of image and prompt, at most.
        """
        latent_size = size[0] // 8, size[1] // 8
        plans = plan_sections(sampling)
        num_noisy = Level(sampling.latent_window_size, 1).num_tokens(latent_size)
        num_latent = num_noisy + max(section.seen.num_tokens(latent_size) for section in plans)
        return self.transformer.attention_shape(num_latent + num_condition_tokens)

    def _denoise(
        self,
        noise: Tensor,
        packed: PackedSection,
        branches: list[_Branch],
        context: StepContext,
        section: SectionPlan,
        job: _Job,
    ) -> Tensor:
        """Latents of one section on the CPU, fp32."""
        sampler: Sampler = make_sampler(job.sampling.sampler, job.sigmas)
        latents = noise.to(self.transformer.device)
        was_finite: Tensor | None = None
        for step, sigma in enumerate(job.sigmas[:-1].tolist()):
            model_input = self._round_latents(latents)
            x0 = model_input - sigma * self._velocity(model_input, step, packed, branches, context, job)
            latents = sampler.update(latents, x0, step)
            # One step late: the device has this step queued while the host waits for the answer.
            _check_finite(was_finite, section.index, step - 1, job.attention)
            was_finite = x0.isfinite().all()
            job.report(_step_event(section, step, branches[0], job.sampling, x0))
        _check_finite(was_finite, section.index, job.sampling.num_steps - 1, job.attention)
        return latents.cpu()

    def _velocity(
        self,
        latents: Tensor,
        step: int,
        packed: PackedSection,
        branches: list[_Branch],
        context: StepContext,
        job: _Job,
    ) -> Tensor:
        """Velocity of one step, fp32; two branches are combined by true guidance."""
        transformer, sampling = job.prepared.transformer, job.sampling
        velocities = [
            branch.cache.velocity(
                step, transformer.step(latents, step, branch.invariants, packed, context)
            ).float()
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

    def _round_latents(self, latents: Tensor) -> Tensor:
        """The sampler's latents as the transformer takes them: bf16 values where the residual stream is bf16."""
        return latents.to(self.transformer.residual_dtype).float()


def assemble(sections: list[LatentSection], start_latent: Tensor) -> Tensor:
    """All latents of a job in video order, the start latent first: [1, C, 1 + n * window, Y, X] on the CPU."""
    ordered = sorted(sections, key=lambda section: section.first_latent_frame)
    return torch.cat([start_latent.float().cpu(), *(section.latents for section in ordered)], dim=2)


def _check_finite(is_finite: Tensor | None, section: int, step: int, attention: SelfAttention) -> None:
    if is_finite is None or bool(is_finite):
        return
    raise NumericalError(
        f"latents of section {section + 1} became NaN or infinite at step {step + 1} (attention: {attention.name}); "
        "check the model's files, and below fp32 try precision='fp32' (--precision fp32)",
        section=section,
        step=step,
        backend=attention.name,
    )


def _ignore(event: object) -> None:
    """Drop an event: the default where the caller gives no ``on_event``."""


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
