"""The flow of pictures that are moved by known amounts, and what it leaves of changes that are no motion."""

import pytest
import torch
from torch import Tensor

from isoframe.bench.quality.clip_scores import draw_frames, held_out_scene
from isoframe.bench.quality.optical_flow import lucas_kanade, warping_errors


def picture(right: float, down: float) -> Tensor:
    """A smooth texture [1, 1, 48, 64], moved."""
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij")
    x, y = x - right, y - down
    return (0.5 + 0.2 * torch.sin(x / 4) + 0.2 * torch.cos(y / 5) + 0.1 * torch.sin((x + y) / 7))[None, None]


@pytest.mark.parametrize("motion", [(0.5, 0.2), (1.5, -1.0), (3.0, 2.0), (-5.0, 4.0)])
def test_a_known_motion_is_found(motion: tuple[float, float]) -> None:
    flow = lucas_kanade(picture(0, 0), picture(*motion))
    assert flow[0, :, 10:-10, 10:-10].mean((1, 2)).tolist() == pytest.approx(motion, abs=0.05)


def test_a_picture_without_texture_stands_still() -> None:
    grey = torch.full((1, 1, 40, 40), 0.5)
    assert float(lucas_kanade(grey, grey + 0.1).abs().max()) < 1e-3


def test_motion_explains_a_scene_and_flicker_it_does_not() -> None:
    for index in (0, 1, 3):
        frames = draw_frames(held_out_scene(index), 30)
        changes = (frames[1:].float() - frames[:-1].float()).abs().mean() / 255
        errors = warping_errors(frames)
        assert errors.shape == (30,)
        assert float(errors.mean()) < 0.35 * float(changes)
        flickering = frames.clone()
        flickering[::2] = (flickering[::2].float() * 0.95).to(torch.uint8)
        assert float(warping_errors(flickering).mean()) > 2 * float(errors.mean())
