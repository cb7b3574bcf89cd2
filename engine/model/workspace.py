"""Scratch memory of one section, reused by every block and step."""

import math

import torch
from torch import Tensor


class Workspace:
    """Buffers by name; each grows to the largest size asked for.

    Fresh memory costs a page fault every 4 KiB on the CPU: for the activations of a wide block that is as much time
    as the arithmetic around its matrix products.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uninitialized memory of ``shape``; the last taker's content is lost."""
        size = math.prod(shape)
        if name in self._buffers and self._buffers[name].numel() < size:
            # The smaller buffer goes first: the two are never needed together.
            del self._buffers[name]
        if name not in self._buffers:
            self._buffers[name] = torch.empty(size, dtype=dtype, device=device)
        return self._buffers[name][:size].view(shape)
