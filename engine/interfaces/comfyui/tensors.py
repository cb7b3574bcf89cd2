"""ComfyUI's types and the engine's: latents, prompts, image embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...engine import Engine
from ...errors import InputError
from ...files import read_json
from ...model.conditioning import PromptEmbeds

# HunyuanVideo's; a model's own VAE may have another.
_SCALE = 0.476986
# How a LATENT tells of its sections; nodes that work on latents keep the keys they do not know.
_ORDER, _WINDOW = "isoframe_order", "isoframe_window"


@dataclass(frozen=True, slots=True)
class VisionOutput:
    """Has what users of CLIP_VISION_OUTPUT ask for: the tokens [1, I, V]."""

    last_hidden_state: Tensor

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = getattr(self, name)
        return tensor


def latent_scale(engine: Engine) -> float:
    """Scaled latents are the VAE's, which ComfyUI passes around, times this."""
    ref = engine.components.refs.get("vae")
    if ref is None:
        return _SCALE
    folder = ref.fetch(local_files_only=engine.config.local_files_only)
    return float(read_json(folder / "config.json")["scaling_factor"])


def to_latent(latents: Tensor, scale: float, **sections: Any) -> dict[str, Any]:
    """A LATENT of scaled latents [1, C, T, Y, X]."""
    return {"samples": latents / scale, **{f"isoframe_{name}": value for name, value in sections.items()}}


def from_latent(latent: Mapping[str, Any], scale: float) -> Tensor:
    """Scaled latents [1, C, T, Y, X] of a LATENT, which may be of an image VAE [1, C, Y, X]."""
    samples: Tensor = latent["samples"]
    if samples.ndim == 4:
        samples = samples[:, :, None]
    if samples.ndim != 5 or samples.shape[0] != 1:
        raise InputError(
            f"samples must be [1, C, T, Y, X], got {tuple(samples.shape)}; give one latent, not a batch"
        )
    return samples.float() * scale


def sections_of(latent: Mapping[str, Any]) -> tuple[str, int]:
    """Order and window of the sections in a LATENT.

    Raises:
        InputError: another sampler made it.
    """
    if _ORDER not in latent or _WINDOW not in latent:
        raise InputError(
            "samples must come from the Isoframe sampler; decode those of other samplers with VAE Decode (Tiled)"
        )
    return str(latent[_ORDER]), int(latent[_WINDOW])


def to_conditioning(embeds: PromptEmbeds) -> list[list[Any]]:
    """A CONDITIONING, as ComfyUI's text encoder for HunyuanVideo gives it: only valid tokens."""
    num_valid = int((embeds.text_mask != 0).sum())
    return [[embeds.text_embeds[:, :num_valid], {"pooled_output": embeds.pooled_embeds}]]


def from_conditioning(name: str, conditioning: Sequence[Sequence[Any]]) -> PromptEmbeds:
    """The prompt in a CONDITIONING; ``name`` is the input's.

    Raises:
        InputError: it is of another text encoder, or of several prompts.
    """
    if len(conditioning) != 1:
        raise InputError(f"{name} must be one prompt, got {len(conditioning)} that were combined")
    text, options = conditioning[0]
    pooled = options.get("pooled_output")
    if not isinstance(text, Tensor) or not isinstance(pooled, Tensor):
        raise InputError(
            f"{name} must have text and pooled embeddings, as the encoders of type hunyuan_video give them"
        )
    mask = options.get("attention_mask")
    if mask is None:
        mask = torch.ones(text.shape[:2])
    return PromptEmbeds(text_embeds=text, text_mask=mask != 0, pooled_embeds=pooled)
