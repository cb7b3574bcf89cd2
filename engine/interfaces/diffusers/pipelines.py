"""A FramePack pipeline of diffusers with the engine's transformer in place of its own."""

import functools
import os
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from ...checkpoints.checkpoint import Checkpoint
from ...companions.components import Components, ModelProfile, find_components
from ...errors import ConfigError
from ...generation.loaded_model import LoadedModel, Place, open_source
from ...request.config import EngineConfig, LoraStrength, SamplingConfig
from ...weights.store import Store
from .accelerated import AcceleratedTransformer
from .module_checkpoint import module_checkpoint

_PIPELINE = "HunyuanVideoFramepackPipeline"


def accelerate(
    pipe: Any,
    config: EngineConfig | None = None,
    *,
    source: str | os.PathLike[str] | None = None,
    step_cache: str = "none",
    step_cache_threshold: float = 0.15,
    order: str = "inverted",
    loras: tuple[LoraStrength, ...] = (),
) -> AcceleratedTransformer:
    """Replace ``pipe.transformer`` by one of the engine, in place; the pipeline is called as before.

    The other components stay the pipeline's. Accelerate after the scheduler is replaced and after ``pipe.to(device)``:
    the engine learns from ``pipe.scheduler.set_timesteps`` where a section begins, and what the pipeline holds on the
    device is not the engine's to use.

    Args:
        pipe: a HunyuanVideoFramepackPipeline.
        config: what the engine may use: device, precision, vram, ram.
        source: where the transformer's weights are, as for ``Engine.load``; None takes those of ``pipe.transformer``,
            which are then in memory twice. Loading the pipeline with ``transformer=None`` and giving the id here reads
            them once.
        step_cache: "none" (exact), or approximate: "teacache", "magcache".
        step_cache_threshold: as in :class:`SamplingConfig`.
        order: "inverted" or "forward"; MagCache knows one set of ratios for each.
        loras: at work in every section.

    Returns:
        The new ``pipe.transformer``, which counts the steps that it computed and skipped.

    Raises:
        ConfigError: another pipeline, or one that is accelerated already.
        CheckpointError: the weights are missing, damaged or of another model, or a LoRA does not fit them.
        BudgetError: the weights do not fit; once a video is asked for, its size does not.
    """
    _check_pipeline(pipe, source, loras)
    sampling = SamplingConfig(
        num_sections=1, step_cache=step_cache, step_cache_threshold=step_cache_threshold, order=order, loras=loras
    )  # fmt: skip
    original = pipe.transformer
    home = _leave_card(original)
    try:
        model = _load(original if source is None else source, config or EngineConfig())
        transformer = AcceleratedTransformer(model, sampling, original)
    except BaseException:
        _return_to(home, original)
        raise
    transformer.home = home
    _announce_sections(pipe.scheduler, transformer)
    pipe.transformer = transformer
    return transformer


def restore(pipe: Any) -> None:
    """Undo :func:`accelerate`; the engine's memory is given back.

    Raises:
        ConfigError: the pipeline is not accelerated.
    """
    transformer = pipe.transformer
    if not isinstance(transformer, AcceleratedTransformer):
        raise ConfigError(f"pipe must be accelerated, its transformer is a {type(transformer).__name__}")
    vars(pipe.scheduler).pop("set_timesteps", None)
    pipe.transformer = transformer.original
    transformer.close()
    _return_to(transformer.home, transformer.original)


def _check_pipeline(pipe: Any, source: object, loras: tuple[LoraStrength, ...]) -> None:
    if type(pipe).__name__ != _PIPELINE and _PIPELINE not in {base.__name__ for base in type(pipe).__mro__}:
        raise ConfigError(f"pipe must be a {_PIPELINE} of diffusers, got {type(pipe).__name__}")
    if isinstance(pipe.transformer, AcceleratedTransformer):
        raise ConfigError("pipe is accelerated already; restore(pipe) first")
    if pipe.transformer is None and source is None:
        raise ConfigError("source must be given where pipe.transformer is None: a Hub id, a folder or a file")
    if any(lora.sections is not None for lora in loras):
        raise ConfigError(
            "sections of a LoRA must be None here: a pipeline does not tell which section it makes"
        )


def _leave_card(original: Any) -> torch.device | None:
    """Move a transformer that is about to be replaced into RAM; where it was, if it was elsewhere."""
    if original is None or original.device.type in ("cpu", "meta"):
        return None
    home: torch.device = original.device
    original.to("cpu")
    return home


def _return_to(home: torch.device | None, original: Any) -> None:
    if home is not None:
        original.to(home)


def _load(weights: Any, config: EngineConfig) -> LoadedModel:
    """The model in memory or at the source ``weights``."""
    # What the pipeline's own components hold on the device is not in the budget.
    place = Place.of(config)
    checkpoint: Checkpoint | Store
    if isinstance(weights, torch.nn.Module):
        # torch's types know of no attributes but modules and tensors.
        sizes: dict[str, Any] = dict(cast(Any, weights).config)
        name = str(sizes.get("_name_or_path") or type(weights).__name__)
        # The profile is for requests, which a pipeline has none of.
        components = Components(
            name=name, transformer=name, profile=ModelProfile(buckets=((640, 640),)), refs={}
        )
        checkpoint = module_checkpoint(weights, sizes, name)
    else:
        components = find_components(weights, local_files_only=config.local_files_only)
        checkpoint, place = open_source(components, config, place)
    model = LoadedModel(checkpoint, components, config, place, has_fp32_head=False)
    # What the pipeline's own components compute is not the engine's to limit.
    model.memory.limit.lift()
    return model


def _announce_sections(scheduler: Any, transformer: AcceleratedTransformer) -> None:
    """Have ``transformer`` told of a section whenever the timesteps are set, which pipelines do once for each."""
    set_timesteps: Callable[..., None] = scheduler.set_timesteps

    @functools.wraps(set_timesteps)
    def announced(*args: Any, **options: Any) -> None:
        set_timesteps(*args, **options)
        timesteps: Tensor = scheduler.timesteps
        transformer.begin_section(timesteps)

    scheduler.set_timesteps = announced
