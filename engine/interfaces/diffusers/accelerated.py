"""The transformer of a diffusers pipeline, run by the engine: inside a budget, with what steps share computed once."""

import logging
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ...checkpoints.lora import ActiveLoras, LoraLibrary
from ...device import memory_errors
from ...errors import ConfigError, NumericalError
from ...families.registry import family_of
from ...families.transformer_base import PreparedJob, StepContext, Transformer
from ...generation.loaded_model import LoadedModel
from ...model.attention import SDPA_ATTENTION, SelfAttention
from ...model.lora_layers import branch_bytes
from ...model.packing import PackedSection
from ...request.config import SamplingConfig
from ...sampling.step_cache import StepCache
from ...weights.memory import JobMemory
from .forward_call import DiffusersForward, ForwardCall
from .versioned_cache import VersionedCache

_logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Sample:
    """One sample of the batch in the section at work.

    Attributes:
        section: its history.
        caches: a step cache for each branch of guidance.
        step: the one that was called last.
        branch: which of its calls that was.
    """

    section: PackedSection
    caches: list[StepCache] = field(default_factory=list)
    step: int = -1
    branch: int = 0

    def enter(self, step: int) -> int:
        """The branch that a call at ``step`` is: the first is the prompt's, a second the negative prompt's."""
        self.branch = self.branch + 1 if step == self.step else 0
        self.step = step
        return self.branch


class AcceleratedTransformer(DiffusersForward):
    """Called as diffusers' class is, between the calls of ``scheduler.set_timesteps`` that begin the sections.

    Attributes:
        original: the transformer that it stands for; None where the pipeline had none.
        home: the device that it left for RAM; None if it was there.
        num_computed: steps that ran the blocks, since the pipeline was accelerated.
        num_skipped: steps that reused an earlier one's result.
    """

    def __init__(self, model: LoadedModel, sampling: SamplingConfig, original: Any) -> None:
        """Use :func:`~isoframe.engine.interfaces.diffusers.accelerate`.

        Args:
            model: with the weights.
            sampling: step cache and LoRAs; the rest is the pipeline's to say.
            original: what it stands for.
        """
        self.original = original
        self.home: torch.device | None = None
        self.num_computed = self.num_skipped = 0
        self._model = model
        self._sampling = sampling
        self._loras = _find_loras(model.memory.transformer, sampling)
        # Ratios that are missing are not found out after the prompt has been encoded.
        model.make_step_cache(sampling)
        self._transformer = model.memory.transformer.with_loras(self._loras)
        self._timesteps: tuple[float, ...] = ()
        self._num_sections = 0
        # Of the section before this one, until more are found: a negative prompt's weights and results take room.
        self._num_branches = 1
        self._num_found = 0
        self._memory: JobMemory | None = None
        self._attention: SelfAttention = SDPA_ATTENTION
        self._context: StepContext | None = None
        self._planned: object = None
        self._samples: dict[int, _Sample] = {}
        self._jobs: VersionedCache[PreparedJob] = VersionedCache(1, trusts_inference=True)

    @property
    def config(self) -> Any:
        """The configuration under the names that diffusers' class has, which pipelines read."""
        if self.original is not None:
            return self.original.config
        from diffusers.configuration_utils import FrozenDict

        return FrozenDict(asdict(self._model.memory.transformer.config))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of activations: fp32 on the CPU, bf16 on CUDA, or what the configuration says."""
        return self._model.memory.transformer.dtype

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._model.device

    def begin_section(self, timesteps: Tensor) -> None:
        """The calls to come are the steps at ``timesteps`` [S] of a new section."""
        times = tuple(timesteps.float().tolist())
        if len(set(times)) < len(times):
            raise ConfigError(f"timesteps must differ from one another, got {times}")
        self._timesteps = times
        self._num_sections += 1
        self._num_branches, self._num_found = max(1, self._num_found), 0
        self._samples.clear()

    def close(self) -> None:
        """Give the memory back; it cannot be called any more."""
        self._samples.clear()
        self._jobs.clear()
        self._context = None
        self._timesteps = ()
        self._model.close()

    def velocity(self, call: ForwardCall, sample: int) -> Tensor:
        step = self._find_step(call.time(sample))
        with memory_errors("denoise"):
            if sample not in self._samples:
                self._settle(call)
                self._attention.reset()
                self._samples[sample] = _Sample(call.pack(self._transformer, sample))
            state = self._samples[sample]
            branch = state.enter(step)
            if branch == len(state.caches):
                state.caches.append(self._model.make_step_cache(self._section_sampling(call)))
                self._num_found = max(self._num_found, len(state.caches))
                self._num_branches = max(self._num_branches, self._num_found)
                self._settle(call)
            job = self._job(call, sample, branch)
            latents = call.latents(sample).to(self.device).float()
            step_pass = self._transformer.step(latents, step, job, state.section, self._context)
            velocity = state.caches[branch].velocity(step, step_pass)
        was_computed = state.caches[branch].was_computed
        self.num_computed += was_computed
        self.num_skipped += not was_computed
        if step == len(self._timesteps) - 1:
            self._check_finite(velocity, step)
            if branch == self._num_found - 1 and sample == call.hidden_states.shape[0] - 1:
                self._end_section()
        return velocity

    def _find_step(self, time: float) -> int:
        if time not in self._timesteps:
            raise ConfigError(
                f"timestep must be one of the {len(self._timesteps)} that pipe.scheduler.set_timesteps set, got {time}; "
                "a scheduler that is put into the pipeline after accelerate(pipe) is not seen: restore and accelerate "
                "again"
            )
        return self._timesteps.index(time)

    def _section_sampling(self, call: ForwardCall) -> SamplingConfig:
        return replace(
            self._sampling,
            num_steps=len(self._timesteps),
            latent_window_size=call.size[0],
            # Any scale but 1 stands for a second branch.
            cfg_scale=float(self._num_branches),
        )

    def _settle(self, call: ForwardCall) -> None:
        """Have weights and attention as a section of this size and length wants them."""
        base, sampling = self._model.memory.transformer, self._section_sampling(call)
        wanted = sampling, call.size, call.image_embeds.shape[1], call.text[0].shape[1]
        if self._memory is None or wanted != self._planned:
            _, height, width = call.size
            num_bytes = branch_bytes(base.unit_specs, self._loras, base.dtype)
            job = self._model.memory.job(sampling, (8 * height, 8 * width))
            self._memory = self._model.memory.plan(replace(job, is_latents_only=True, lora_bytes=num_bytes))
            num_tokens = call.num_latent_tokens() + call.text[0].shape[1] + call.image_embeds.shape[1]
            self._attention = self._model.attention.make(base.attention_shape(num_tokens))
            self._planned = wanted
        units, token_chunk = self._memory.place()
        self._context = self._transformer.context(units, self._attention, token_chunk)

    def _job(self, call: ForwardCall, sample: int, branch: int) -> PreparedJob:
        """What the steps of a branch share; computed again where a tensor or the timesteps changed."""

        def prepare() -> PreparedJob:
            assert self._memory is not None, "the section is settled"
            # There may not be room for units beside the weights of what is computed once.
            self._memory.make_room()
            vision = call.project_image(self._transformer, sample)
            return call.prepare(self._transformer, sample, torch.tensor(self._timesteps), vision)

        key = self._timesteps, call.scale(sample)
        return self._jobs.get((sample, branch), key, (*call.text, call.image_embeds), prepare)

    def _check_finite(self, velocity: Tensor, step: int) -> None:
        if bool(velocity.isfinite().all()):
            return
        attention = self._attention.name
        raise NumericalError(
            f"the velocity became NaN or infinite at step {step + 1} of section {self._num_sections} since accelerate "
            f"(attention: {attention}); check the model's files, and below fp32 try precision='fp32'",
            section=self._num_sections - 1,
            step=step,
            backend=attention,
        )

    def _end_section(self) -> None:
        """The pipeline decodes now; where weights stream, it needs the memory of the slots."""
        assert self._memory is not None, "the section was settled"
        if len(self._timesteps) > 1:
            # With a single step nobody knows yet whether a negative prompt follows.
            self._samples.clear()
        if self._memory.plan.ring:
            self._memory.make_room()
        _logger.info("%d steps computed, %d skipped so far", self.num_computed, self.num_skipped)


def _find_loras(transformer: Transformer, sampling: SamplingConfig) -> ActiveLoras:
    library = LoraLibrary(transformer.layer_shapes, family_of(transformer.config).lora_aliases())
    return [(library.find(use.source), use.strength) for use in sampling.loras if use.strength != 0]
