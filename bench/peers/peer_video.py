"""A whole video by us and by diffusers' FramePack pipeline: same weights, image, prompt and noise, in turn."""

import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine.companions.components import find_components
from ...engine.companions.tensor_cache import TensorCache
from ...engine.engine import Engine
from ...engine.errors import ConfigError
from ...engine.media.images import load_image
from ...engine.request.config import EngineConfig, Request
from ...quant import DENSE_DTYPES
from ..meters.accuracy import relative_rms
from ..meters.method_watch import replace
from .in_turn import Clock, PeerResult, compare_in_turn

# Largest accepted relative RMS difference of the frames: they are rounded to 256 levels on top of the latents' rounding.
MAX_FRAME_ERRORS = {"fp32": 0.01, "bf16": 0.1}
_SAMPLING_TYPES = {"inverted": "inverted_anti_drifting", "forward": "vanilla"}


def compare_pipelines(
    model: str,
    request: Request,
    *,
    device: torch.device,
    precision: str,
    repeats: int,
    is_offloaded: bool = False,
    vram: str | None = None,
    clock: Clock = time.perf_counter,
) -> PeerResult:
    """Check that both make the same frames, then time ``repeats`` videos of each, one of each in turn.

    From prompt and image to frames in memory, every encoder included; weights are loaded before. No file is written,
    and our cache of prompts is not read.

    Args:
        model: as ``Engine.load`` takes it; a folder or Hub id that diffusers' pipeline reads.
        request: the video, with sampler "euler", order "inverted" or "forward", and a size.
        device: where both run.
        precision: "fp32" or "bf16".
        repeats: videos of each.
        is_offloaded: diffusers' group offloading; on CUDA alone.
        vram: our budget; None is 90 % of what is free.
        clock: seconds.

    Raises:
        ConfigError: offloading without a CUDA device.
        IsoframeError: the frames differ by more than :data:`MAX_FRAME_ERRORS`; nothing is timed then.
    """
    if is_offloaded and device.type != "cuda":
        raise ConfigError(
            f"--offload moves weights to a CUDA device and back, this is {device}; leave it out"
        )
    config = EngineConfig(device=str(device), precision=precision, vram=vram)
    with Engine.load(model, config=config) as engine, replace(TensorCache, "read", lambda *_: None):
        peer = DiffusersPipeline(model, device, DENSE_DTYPES[precision], is_offloaded=is_offloaded)

        def ours() -> Tensor:
            sections = sorted(engine.generate(request), key=lambda section: section.first_frame)
            return torch.cat([section.frames for section in sections])

        def theirs() -> Tensor:
            return peer.frames(request)

        return compare_in_turn(
            theirs,
            ours,
            what=f"{model} in {precision}: the frames",
            limit=MAX_FRAME_ERRORS[precision],
            repeats=repeats,
            find_error=lambda actual, expected: relative_rms(actual.float(), expected.float()),
            clock=clock,
        )


def _dtype_argument() -> str:
    """What ``from_pretrained`` calls the dtype; the older name warns since 0.42."""
    major, minor = (int(part) for part in metadata.version("diffusers").split(".")[:2])
    return "dtype" if (major, minor) >= (0, 42) else "torch_dtype"


class DiffusersPipeline:
    """diffusers' pipeline with the schedule of the published program."""

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype, *, is_offloaded: bool) -> None:
        from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoFramepackPipeline

        components = find_components(model)
        source = Path(components.transformer)
        folder = source if source.is_dir() else model
        # As the engine has them: a VAE in bf16 would lose colours.
        vae_dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._profile = components.profile
        self._device = device
        self._pipe: Any = HunyuanVideoFramepackPipeline.from_pretrained(
            str(folder), **{_dtype_argument(): {"default": dtype, "vae": vae_dtype}}
        )
        self._pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(
            self._pipe.scheduler.config, use_dynamic_shifting=True
        )
        self._pipe.set_progress_bar_config(disable=True)
        if is_offloaded:
            self._offload()
        else:
            self._pipe.to(device)
        self._encode_image = self._pipe.prepare_image_latents

    def _offload(self) -> None:
        """Blocks of the transformer come and go beside the arithmetic; what is small stays on the card."""
        self._pipe.transformer.enable_group_offload(
            onload_device=self._device,
            offload_device=torch.device("cpu"),
            offload_type="block_level",
            num_blocks_per_group=1,
            use_stream=True,
        )
        for name, component in self._pipe.components.items():
            if name != "transformer" and isinstance(component, torch.nn.Module):
                component.to(self._device)

    def frames(self, request: Request) -> Tensor:
        """The video of ``request``, uint8 [T, H, W, 3] on the CPU."""
        assert request.size is not None, "compare_pipelines was given a size"
        height, width = request.size

        def encode(image: Tensor, generator: Any = None, **arguments: Any) -> Tensor:
            # Ours draws the posterior from a generator of its own; theirs would take the first noise's numbers.
            own = torch.Generator().manual_seed(request.seed)
            latents: Tensor = self._encode_image(image, generator=own, **arguments)
            return latents

        self._pipe.prepare_image_latents = encode
        video = self._pipe(
            image=load_image(request.image).resize((width, height)),
            prompt=request.prompt,
            prompt_template={
                "template": self._profile.prompt_template,
                "crop_start": self._profile.crop_start,
            },
            height=height,
            width=width,
            # Its sections are counted by the frames that the first one has.
            num_frames=request.num_sections * (4 * request.latent_window_size - 3),
            latent_window_size=request.latent_window_size,
            num_inference_steps=request.num_steps,
            guidance_scale=request.guidance_scale,
            generator=torch.Generator().manual_seed(request.seed),
            sampling_type=_SAMPLING_TYPES[request.order],
            output_type="pt",
        ).frames[0]
        frames: Tensor = (video.movedim(1, -1).float() * 255).round().to(torch.uint8).cpu()
        return frames
