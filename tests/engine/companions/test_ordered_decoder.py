"""A push that failed for lack of memory is made again, and the video is the one without the failure."""

from collections.abc import Sequence
from typing import cast

import pytest
import torch
from torch import Tensor

from isoframe.engine.companions.section_decoder import OrderedDecoder
from isoframe.engine.companions.vae import VideoVAE

WINDOW = 2


class FailingVAE:
    """Decodes by repeating pixels; its ``fails_at``-th call runs out of memory."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.num_calls = 0
        self._fails_at = fails_at

    def decode(self, latents: Tensor) -> Tensor:
        self.num_calls += 1
        if self.num_calls - 1 == self._fails_at:
            raise torch.OutOfMemoryError("out of memory")
        frames = latents[:, :3]
        for dim, times in ((2, 4), (3, 8), (4, 8)):
            frames = frames.repeat_interleave(times, dim)
        return frames[:, :, 3:].contiguous()


def video(places: Sequence[int], vae: FailingVAE) -> tuple[Tensor, int]:
    """The frames of a random job, each pushed once more after a failure; and how many pushes failed."""
    generator = torch.Generator().manual_seed(1)
    decoder = OrderedDecoder(
        cast(VideoVAE, vae), places=places, window=WINDOW, start_latent=torch.randn(1, 16, 1, 1, 1)
    )
    frames = torch.zeros(decoder.num_frames, 8, 8, 3, dtype=torch.uint8)
    counts, num_failures = torch.zeros(decoder.num_frames), 0
    for _ in places:
        latents = torch.randn(1, 16, WINDOW, 1, 1, generator=generator)
        try:
            part = decoder.push(latents)
        except torch.OutOfMemoryError:
            num_failures += 1
            part = decoder.push(latents)
        span = slice(part.first_frame, part.first_frame + len(part.frames))
        frames[span] = part.frames
        counts[span] += 1
    assert (counts == 1).all()
    return frames, num_failures


@pytest.mark.parametrize("places", [(3, 0, 1, 2), (3, 1, 2, 0), (2, 1, 3, 0)], ids=str)
@pytest.mark.parametrize("fails_at", range(4))
def test_a_push_that_failed_can_be_made_again(places: Sequence[int], fails_at: int) -> None:
    torch.manual_seed(7)
    expected, _ = video(places, FailingVAE())
    torch.manual_seed(7)
    frames, num_failures = video(places, FailingVAE(fails_at))
    assert num_failures == 1
    assert torch.equal(frames, expected)
