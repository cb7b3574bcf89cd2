"""Small FramePack transformers with weights that all matter, and inputs for them."""

from pathlib import Path
from typing import Any

import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel
from torch import Tensor

TEXT_WIDTH, POOLED_WIDTH, IMAGE_WIDTH = 48, 40, 56
HISTORY_GROUPS = ("latents_clean", "latents_history_2x", "latents_history_4x")

TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "num_layers": 2,
    "num_single_layers": 2,
    "text_embed_dim": TEXT_WIDTH,
    "pooled_projection_dim": POOLED_WIDTH,
    "image_proj_dim": IMAGE_WIDTH,
    "rope_axes_dim": (16, 24, 24),
    "has_image_proj": True,
    "has_clean_x_embedder": True,
}


def tiny_model(
    seed: int = 0, *, gain: float = 1.0, **overrides: Any
) -> HunyuanVideoFramepackTransformer3DModel:
    """An fp32 model; ``gain`` scales the matrices, whose outputs have about that deviation for unit inputs."""
    model = HunyuanVideoFramepackTransformer3DModel(**{**TINY, **overrides}).eval().requires_grad_(False)
    draw_weights(model, seed, gain)
    return model


def draw_weights(model: HunyuanVideoFramepackTransformer3DModel, seed: int, gain: float = 1.0) -> None:
    """Normal matrices, biases of a third of a unit, norm weights around one."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.state_dict().items():
        noise = torch.randn(weight.shape, generator=generator)
        if name.endswith(".bias"):
            weight.copy_(noise / 3)
        elif weight.dim() == 1:
            weight.copy_(1 + noise / 4)
        else:
            weight.copy_(gain * noise / weight[0].numel() ** 0.5)


def saved_model(folder: Path, seed: int = 0, **options: Any) -> HunyuanVideoFramepackTransformer3DModel:
    """A tiny model that also lies in ``folder``."""
    model = tiny_model(seed, **options)
    model.save_pretrained(folder)
    return model


def frame_indices(order: str, gap: int = 0, window: int = 9) -> dict[str, Tensor]:
    """Positions of the frames of a section whose target starts ``gap`` windows after the start frame."""
    if order == "forward":
        start, far, mid, near, target = torch.arange(1 + 16 + 2 + 1 + window).split([1, 16, 2, 1, window])
    else:
        sizes = [1, gap * window, window, 1, 2, 16]
        start, _, target, near, mid, far = torch.arange(sum(sizes)).split(sizes)
    return {
        "indices_latents": target,
        "indices_latents_clean": torch.cat([start, near]),
        "indices_latents_history_2x": mid,
        "indices_latents_history_4x": far,
    }


def forward_inputs(
    token_grid: tuple[int, int],
    *,
    num_valid_text: tuple[int, ...] = (7,),
    num_text: int | None = None,
    num_image_tokens: int = 5,
    order: str = "inverted",
    gap: int = 0,
    window: int = 9,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Keyword arguments of one forward; the batch has one sample for each entry of ``num_valid_text``."""
    generator = torch.Generator().manual_seed(seed)
    batch, num_text = len(num_valid_text), num_text or max(num_valid_text)
    height, width = 2 * token_grid[0], 2 * token_grid[1]

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    return {
        "hidden_states": draw(16, window, height, width),
        "timestep": torch.linspace(881.25, 333.1, batch),
        "encoder_hidden_states": draw(num_text, TEXT_WIDTH),
        "encoder_attention_mask": torch.arange(num_text) < torch.tensor(num_valid_text)[:, None],
        "pooled_projections": draw(POOLED_WIDTH),
        "image_embeds": draw(num_image_tokens, IMAGE_WIDTH),
        "guidance": torch.full((batch,), 10_000.0),
        "latents_clean": draw(16, 2, height, width),
        "latents_history_2x": draw(16, 2, height, width),
        "latents_history_4x": draw(16, 16, height, width),
        **frame_indices(order, gap, window),
    }


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest error over the largest value."""
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())
