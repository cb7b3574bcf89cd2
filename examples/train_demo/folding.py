"""Exact rescaling of a trained VAE, so that its latents have zero mean and unit deviation in every channel."""

import random
from typing import Any

import torch
from torch import Tensor, nn

from isoframe.bench.quality.world import PERIOD, render, sample_scene


@torch.no_grad()
def fold_latent_statistics(vae: Any, *, seed: int, num_clips: int = 32) -> None:
    """Move the latents' mean and deviation over the world into the VAE's outer 1x1x1 convolutions.

    The scaling factor stays what the real VAE has. Empty history, which is zero, then means an average latent,
    and decoding gives what it gave before up to rounding.
    """
    means = torch.cat([_latents(vae, f"fold-{seed}-{index}") for index in range(num_clips)])
    mean = means.mean((0, 2, 3, 4))
    size = means.std((0, 2, 3, 4)) * vae.config.scaling_factor
    channels = mean.shape[0]
    inward: nn.Conv3d = vae.quant_conv
    outward: nn.Conv3d = vae.post_quant_conv
    assert inward.bias is not None
    assert outward.bias is not None
    inward.weight[:channels] /= size.view(-1, 1, 1, 1, 1)
    inward.bias[:channels] = (inward.bias[:channels] - mean) / size
    # The other half of the channels is the log variance.
    inward.bias[channels:] -= 2 * size.log()
    outward.bias += outward.weight[:, :, 0, 0, 0] @ mean
    outward.weight *= size.view(1, -1, 1, 1, 1)


def _latents(vae: Any, key: str) -> Tensor:
    """Unscaled latent means [1, C, T, Y, X] of one clip."""
    frames = render(sample_scene(random.Random(key)), torch.arange(PERIOD + 1))
    latents: Tensor = vae.encode(frames[None]).latent_dist.mean
    return latents
