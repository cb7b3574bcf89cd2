"""The clips that the transformer trains on, encoded once."""

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoframe.bench.quality.world import (
    COLORS,
    MOTIONS,
    PERIOD,
    SHAPES,
    Scene,
    describe,
    render,
    sample_scene,
)
from train_demo.demo_conditioning import DemoEncoders, PromptTable
from train_demo.padding import pad_by_concatenation


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentPool:
    """Encoded clips and what belongs to them.

    Attributes:
        latents: scaled latents [P, C, 19, Y, X]; frame 0 is the start image, encoded alone.
        image_embeds: [P, I, V].
        prompt_rows: row of each clip's prompt in ``prompts`` [P].
        prompts: every prompt of the world.
    """

    latents: Tensor
    image_embeds: Tensor
    prompt_rows: Tensor
    prompts: PromptTable

    @property
    def num_clips(self) -> int:
        return self.latents.shape[0]


def world_prompts() -> list[str]:
    """Every sentence the world can say."""
    return [describe(color, shape, motion) for color in COLORS for shape in SHAPES for motion in MOTIONS]


def pool_scene(seed: int, index: int) -> Scene:
    """Clip ``index`` of the pool."""
    return sample_scene(random.Random(f"pool-{seed}-{index}"))


def build_pool(
    folder: Path,
    cache: Path,
    *,
    num_clips: int,
    seed: int,
    num_threads: int = 2,
) -> LatentPool:
    """Encode ``num_clips`` clips with the pipeline folder's VAE and encoders, or read them from ``cache``."""
    encoders = DemoEncoders(folder)
    if not cache.exists():
        from diffusers import AutoencoderKLHunyuanVideo

        vae: Any = AutoencoderKLHunyuanVideo.from_pretrained(folder / "vae", torch_dtype=torch.float32).eval()
        pad_by_concatenation(vae)

        def encode(index: int) -> tuple[Tensor, Tensor]:
            torch.set_num_threads(1)
            frames = render(pool_scene(seed, index), torch.arange(2 * PERIOD + 1))
            return encode_clip(vae, frames), encoders.encode_images(frames[:, 0][None])[0]

        with ThreadPoolExecutor(num_threads) as executor:
            clips = list(executor.map(encode, range(num_clips)))
        latents, images = (torch.stack(parts) for parts in zip(*clips, strict=True))
        save_file({"latents": latents, "image_embeds": images}, cache)
    tensors = load_file(cache)
    prompts = encoders.encode_prompts(world_prompts())
    rows = [prompts.rows[pool_scene(seed, index).prompt] for index in range(num_clips)]
    return LatentPool(
        latents=tensors["latents"],
        image_embeds=tensors["image_embeds"],
        prompt_rows=torch.tensor(rows),
        prompts=prompts,
    )


@torch.no_grad()
def encode_clip(vae: Any, frames: Tensor) -> Tensor:
    """Scaled latent means [C, T, Y, X] of ``frames`` [3, 4T - 3, H, W]; the first is the image encoded alone."""
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(frames[None]).latent_dist.mean.float()
    latents[:, :, :1] = vae.encode(frames[None, :, :1]).latent_dist.mean
    scaled: Tensor = latents[0] * vae.config.scaling_factor
    return scaled
