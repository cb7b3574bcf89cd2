"""The linear map from latents to colours that previews use, fitted on the world."""

import random
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from isoframe.bench.quality.world import PERIOD, render, sample_scene
from train_demo.latent_pool import encode_clip

_STRIDE_TIME, _STRIDE_SPACE = 4, 8


@torch.no_grad()
def fit_preview_matrix(vae: Any, *, seed: int, num_clips: int = 24) -> Tensor:
    """Least-squares map [C + 1, 3] from scaled latents to mean colours from 0 to 1; the last row is the bias."""
    latents, colors = [], []
    for index in range(num_clips):
        frames = render(sample_scene(random.Random(f"preview-{seed}-{index}")), torch.arange(PERIOD + 1))
        # The first latent stands for one frame, every other for four.
        extended = torch.cat([frames[:, :1].expand(-1, _STRIDE_TIME - 1, -1, -1), frames], dim=1)
        pooled = avg_pool3d(extended, (_STRIDE_TIME, _STRIDE_SPACE, _STRIDE_SPACE))
        latents.append(encode_clip(vae, frames).flatten(1).T)
        colors.append(pooled.flatten(1).T * 0.5 + 0.5)
    inputs = torch.cat(latents)
    inputs = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    solution: Tensor = torch.linalg.lstsq(inputs, torch.cat(colors)).solution
    return solution
