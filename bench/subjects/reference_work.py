"""Work that never changes, done beside what is timed: it tells a slower machine from slower work."""

import torch
from torch.nn import functional


class ReferenceWork:
    """A few milliseconds of the operations of a small transformer block, on the CPU.

    A machine that others use, or that gets hot, changes its speed by more than the 5 % that growth is judged by. On two
    busy cores the time of a section grew by 91 % over 120 s of video; against this work, by -2 %.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self._tokens = torch.randn(256, 128, generator=generator)
        self._widen = torch.randn(512, 128, generator=generator)
        self._narrow = torch.randn(128, 512, generator=generator)

    @torch.inference_mode()
    def __call__(self) -> None:
        """Do the work once."""
        heads = self._tokens.unflatten(1, (4, 32)).transpose(0, 1)
        for _ in range(2):
            functional.scaled_dot_product_attention(heads, heads, heads)
            hidden = functional.linear(functional.layer_norm(self._tokens, (128,)), self._widen)
            functional.linear(functional.gelu(hidden), self._narrow)
