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
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=dtype, device=device)
        return buffer[:size].view(shape)
