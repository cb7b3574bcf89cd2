"""Replicate padding by concatenation, which trains ten times faster on a CPU than ``F.pad`` in bf16."""

import types

import torch
from torch import Tensor, nn


def pad_by_concatenation(vae: nn.Module) -> None:
    """Replace the padding in every causal convolution of a HunyuanVideo VAE; the values stay the same."""
    from diffusers.models.autoencoders.autoencoder_kl_hunyuan_video import HunyuanVideoCausalConv3d

    for module in vae.modules():
        if isinstance(module, HunyuanVideoCausalConv3d):
            module.forward = types.MethodType(_forward, module)


def _forward(self: nn.Module, hidden_states: Tensor) -> Tensor:
    if torch.is_autocast_enabled("cpu"):
        hidden_states = hidden_states.to(torch.get_autocast_dtype("cpu"))
    left, right, top, bottom, before, after = self.time_causal_padding  # type: ignore[misc]  # six ints
    padded = _replicate(hidden_states, 2, before, after)
    padded = _replicate(padded, 3, top, bottom)
    padded = _replicate(padded, 4, left, right)
    output: Tensor = self.get_submodule("conv")(padded)
    return output


def _replicate(x: Tensor, dim: int, before: int, after: int) -> Tensor:
    if before == after == 0:
        return x
    first, last = x.narrow(dim, 0, 1), x.narrow(dim, x.shape[dim] - 1, 1)
    return torch.cat([first] * before + [x] + [last] * after, dim)
