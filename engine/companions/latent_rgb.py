"""Pictures of latents without the VAE: a linear map from latent channels to RGB."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from .tensor_cache import TensorCache
from .vae import VideoVAE

_NUM_DECODES = 64
_LATENT_SIDE = 8
_COARSE_SIDE = 2


def latents_to_rgb(latents: Tensor, matrix: Tensor) -> Tensor:
    """Colours of scaled latents.

    Args:
        latents: [1, C, T, h, w].
        matrix: [C + 1, 3]; the last row is the bias. Colours are from 0 to 1.

    Returns:
        uint8 [T, h, w, 3] on the CPU.
    """
    pixels = latents[0].float().cpu().movedim(0, -1)
    colours = pixels @ matrix[:-1].float() + matrix[-1].float()
    return (colours.clamp(0, 1) * 255).round().to(torch.uint8)


def fit_latent_rgb(vae: VideoVAE) -> Tensor:
    """Least-squares map [C + 1, 3] from latents to the mean colour of the pixels they decode to.

    Fitted on 64 decodes of smooth random latents: white noise decodes to textures no video has, and the map fitted
    on it is twice as far off on the demo model's videos.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    channels = vae.num_channels
    rows, colours = [], []
    for _ in range(_NUM_DECODES):
        coarse = torch.randn(1, channels, _COARSE_SIDE, _COARSE_SIDE, generator=generator)
        latents = functional.interpolate(
            coarse, size=(_LATENT_SIDE, _LATENT_SIDE), mode="bilinear", align_corners=True
        )
        frame = vae.decode(latents[:, :, None])[:, :, 0].float().cpu()
        rows.append(latents.flatten(2)[0].T)
        colours.append(functional.adaptive_avg_pool2d(frame, _LATENT_SIDE).flatten(2)[0].T / 2 + 0.5)
    inputs = functional.pad(torch.cat(rows).double(), (0, 1), value=1.0)
    solution: Tensor = torch.linalg.lstsq(inputs, torch.cat(colours).double()).solution
    return solution.float().contiguous()


def cached_latent_rgb(vae: VideoVAE, cache_dir: Path) -> Tensor:
    """:func:`fit_latent_rgb`, computed once for a VAE's weights and kept under ``cache_dir``."""
    cache, key = TensorCache(cache_dir / "latent_rgb"), vae.content_hash()
    found = cache.read(key)
    if found is None:
        found = {"latent_rgb": fit_latent_rgb(vae)}
        cache.write(key, found)
    return found["latent_rgb"]
