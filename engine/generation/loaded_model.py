"""A model that is ready: its transformer inside the memory budget, and where its companions are."""

import logging
import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from ...kernels import use_settings
from ...quant import DENSE_DTYPES, Fp8Format, WeightFormat, make_format, multiplies_fp8
from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.hub import split_revision
from ..companions.components import Components
from ..companions.encoders import Encoders
from ..companions.latent_rgb import cached_latent_rgb
from ..companions.vae import VideoVAE
from ..device import check_triton, memory_errors, resolve_device
from ..errors import ConfigError
from ..events import OnConversion
from ..families.opening import open_transformer
from ..families.registry import family_of
from ..model.attention_backends import device_capability
from ..model.attention_choice import AttentionChoice
from ..planning.budget import check_fits
from ..planning.machine import Machine, this_machine
from ..request.config import TUNED_SETTINGS, EngineConfig, SamplingConfig
from ..sampling.denoiser import Denoiser
from ..sampling.magnitude import find_ratios
from ..sampling.step_cache import StepCache, StepCacheFactory, make_step_cache
from ..weights.memory import JobMemory, ModelMemory, planned_job
from ..weights.store import Store, is_store, open_store
from .frame_filter import FrameFilter, filter_name

_logger = logging.getLogger(__name__)


class LoadedModel:
    """One transformer and what is chosen for it: budget, attention, step cache, companions.

    Attributes:
        config: what it may use.
        components: where the companions are; they are opened when they are asked for.
        checkpoint: the transformer's files, or its unit store.
        memory: where the transformer's weights are.
        attention: the configured one, or the fastest for the shape of a job.
        denoiser: samples with it.
        frame_filter: what every frame of its videos passes through.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | Store,
        components: Components,
        config: EngineConfig,
        place: "Place",
        *,
        has_fp32_head: bool = True,
        on_conversion: OnConversion | None = None,
        step_caches: StepCacheFactory | None = None,
        frame_filter: FrameFilter | None = None,
    ) -> None:
        """Load the weights.

        Args:
            checkpoint: the transformer's weights, or a unit store of the format of ``place``.
            components: its companions.
            config: what it may use.
            place: what that is on this machine.
            has_fp32_head: run the output projection of a bf16 job in fp32, as the published program does.
            on_conversion: told how far a conversion is.
            step_caches: as for :meth:`Engine.load`.
            frame_filter: as for :meth:`Engine.load`.
        """
        self.config = config
        self.components = components
        self.checkpoint = checkpoint
        with memory_errors("load"):
            self.memory = memory = ModelMemory(
                checkpoint,
                family_of(checkpoint.config).sizes(components.name, components.read_configs()),
                config,
                place.weight_format,
                place.device,
                place.machine,
                on_conversion,
                has_fp32_head=has_fp32_head,
            )
        self.attention = attention = AttentionChoice(
            name=config.attention, precision=self.precision, device=self.device, cache_dir=config.cache_path()
        )
        self.denoiser = Denoiser(memory.transformer, attention.make, step_caches or self.make_step_cache)
        self.frame_filter = frame_filter
        if config.attention != "auto":
            # A library that is missing is not found out after the prompt has been encoded. One token is what every
            # attention accepts if it runs on the device at all.
            attention.check(memory.transformer.attention_shape(1))

    @property
    def device(self) -> torch.device:
        """Where the transformer computes."""
        return self.memory.transformer.device

    @property
    def precision(self) -> str:
        """Format of the blocks' weights."""
        return self.memory.transformer.weight_format.name

    def make_step_cache(self, sampling: SamplingConfig) -> StepCache:
        """A fresh step cache for one branch of one section."""
        ratios = None
        if sampling.step_cache == "magcache":
            name = self.components.name
            ratios = find_ratios(
                self.memory.transformer.config,
                sampling.order,
                model=name if name == "demo" else split_revision(self.components.transformer)[0],
                model_hash=self.checkpoint.source_hash,
                cache_dir=self.config.cache_path(),
            )
        return make_step_cache(sampling, ratios)

    def plan_sampling(self, sampling: SamplingConfig, size: tuple[int, int]) -> JobMemory:
        """How latents of ``size`` (height, width in pixels) are sampled inside the budget, without a companion.

        Raises:
            BudgetError: it does not fit.
        """
        lora_bytes = self.denoiser.lora_bytes(sampling)
        job = replace(self.memory.job(sampling, size), is_latents_only=True, lora_bytes=lora_bytes)
        return self.memory.plan(job)

    @cached_property
    def encoders(self) -> Encoders:
        """The encoders of text and image; each is loaded when it is at work."""
        return Encoders(
            self.components,
            device=self.device,
            dtype=self.memory.transformer.dtype,
            cache_dir=self.config.cache_path(),
            local_files_only=self.config.local_files_only,
        )

    @cached_property
    def vae(self) -> VideoVAE:
        """The VAE, on the device; first asked for when the text encoders have left it."""
        components = self.components
        # As published on CUDA; half precision is slow or missing on CPUs.
        dtype = torch.float32 if self.device.type == "cpu" else torch.float16
        return VideoVAE.load(
            components.ref("vae"),
            components.family.vae_class,
            device=self.device,
            dtype=dtype,
            local_files_only=self.config.local_files_only,
        )

    def latent_rgb(self) -> Tensor:
        """The model's own latent-to-RGB map, or one fitted to its VAE."""
        if self.components.profile.latent_rgb is not None:
            return torch.tensor(self.components.profile.latent_rgb)
        return cached_latent_rgb(self.vae, self.config.cache_path())

    def identity(self) -> dict[str, object]:
        """What decides the bits of a video besides its request, under the names of a video's metadata."""
        is_cuda = self.device.type == "cuda"
        return {
            "model_hash": self.checkpoint.source_hash,
            "model_revision": getattr(self.checkpoint, "revision", None),
            "device": torch.cuda.get_device_name(self.device) if is_cuda else "cpu",
            "precision": self.precision,
            "frame_filter": filter_name(self.frame_filter),
        }

    def release(self) -> None:
        """Give back the memory of the device that the weights of the next job do not need yet."""
        self.memory.suspend()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def close(self) -> None:
        """Give back the memory of the weights; the model cannot be used any more."""
        self.memory.close()
        self.memory.limit.withdraw()


@dataclass(frozen=True, slots=True)
class Place:
    """What a configuration means on this machine.

    Attributes:
        device: where the transformer computes.
        weight_format: how the blocks' weights are stored and multiplied.
        machine: the budget.
    """

    device: torch.device
    weight_format: WeightFormat
    machine: Machine

    @classmethod
    def of(cls, config: EngineConfig) -> Self:
        """Check the device, and take the launch settings that were measured on it.

        Raises:
            DeviceError: it does not exist, or Triton is missing.
            ConfigError: a limit is more than the machine has.
        """
        device = resolve_device(config.device)
        check_triton(device)
        if device.type == "cuda":
            _use_tuned_kernels(config, device_capability(device))
        weight_format = _choose_format(config, device)
        return cls(device, weight_format, this_machine(device, vram=config.vram, ram=config.ram))


def _choose_format(config: EngineConfig, device: torch.device) -> WeightFormat:
    """How the blocks' weights are stored and multiplied."""
    fallback = "fp32" if device.type == "cpu" else "bf16"
    dtype = DENSE_DTYPES[fallback if config.compute_dtype == "auto" else config.compute_dtype]
    weight_format = make_format(config.precision or fallback, dtype)
    if isinstance(weight_format, Fp8Format) and not multiplies_fp8(device, dtype):
        _logger.warning(
            "precision 'fp8' saves memory but no time here: %s has no fp8 product that gives %s (it takes compute "
            "capability 8.9 and bf16), so every block expands its weights",
            device,
            str(dtype).removeprefix("torch."),
        )
    return weight_format


def open_source(
    found: Components, config: EngineConfig, place: Place, size: tuple[int, int] | None = None
) -> tuple[Checkpoint | Store, Place]:
    """The model's files, and ``place``, with the precision of the store where they are one.

    Before anything is downloaded the budget is checked for videos of ``size``, or of the smallest.
    """
    if not is_store(Path(found.transformer)):
        checkpoint = open_transformer(
            found.transformer,
            local_files_only=config.local_files_only or found.is_hub_silent,
            admit=lambda _, shape: _admit(found, shape, config, place, size, has_store=None),
        )
        return checkpoint, place
    store = open_store(found.transformer)
    place = replace(place, weight_format=_stored_format(store, config))
    _admit(found, store.config, config, place, size, has_store=True)
    return store, place


def _stored_format(store: Store, config: EngineConfig) -> WeightFormat:
    """The weight format of ``store``; a configuration may leave the precision open or name the store's.

    Raises:
        ConfigError: it names another.
    """
    stored = store.weight_format
    dtypes = {dtype: name for name, dtype in DENSE_DTYPES.items()}
    for name, given, found in (
        ("precision", config.precision, stored.name),
        ("compute_dtype", config.compute_dtype, dtypes[stored.dtype]),
    ):
        if given not in (None, "auto", found):
            raise ConfigError(
                f"{name} must be {found}, as the store {store.folder} was made, got {given!r}; leave it out, or convert "
                "the model again"
            )
    return stored


def _admit(
    found: Components,
    shape: Any,
    config: EngineConfig,
    place: Place,
    size: tuple[int, int] | None,
    *,
    has_store: bool | None,
) -> None:
    """Raise :class:`BudgetError` where videos of ``size``, or of the smallest one, do not fit.

    Encoders and VAE come in pieces where need be: the step loop decides whether a model fits.
    """
    wanted = size or min(found.profile.buckets, key=math.prod)
    # More steps take a little more.
    sampling = SamplingConfig(num_sections=1, num_steps=1)
    job = planned_job(
        family_of(shape).sizes(found.name, found.read_configs()),
        config,
        place.weight_format,
        sampling,
        wanted,
    )
    if has_store is None:
        has_store = job.needs_store(place.machine)
    check_fits(replace(job, is_latents_only=True, has_store=has_store), place.machine)


def _use_tuned_kernels(config: EngineConfig, capability: int) -> None:
    """Take the launch settings that `isoframe bench tune` measured on a card of this ``capability``."""
    tuned = config.cache_path() / TUNED_SETTINGS
    if not tuned.is_file():
        return
    try:
        use_settings(tuned, capability)
    except (OSError, ValueError) as error:
        _logger.warning("%s is damaged (%s): delete it, or run isoframe bench tune again", tuned, error)
    else:
        _logger.info("launch settings of the kernels: %s", tuned)
