"""The metrics on results whose distance is known."""

import pytest
import torch

from isoframe.bench.quality.frame_metrics import MAX_DB, histogram_distance, psnr, sharpness, sqnr, ssim
from isoframe.bench.records.trend import mean_interval


def frames(num_frames: int = 3, size: int = 24) -> torch.Tensor:
    return torch.randint(0, 256, (num_frames, size, size, 3), dtype=torch.uint8)


def test_noise_of_a_tenth_is_20_db() -> None:
    signal = torch.randn(1000)
    assert sqnr(1.1 * signal, signal) == pytest.approx(20)
    assert sqnr(signal, signal) == MAX_DB
    assert sqnr(signal, torch.zeros(1000)) == -MAX_DB


def test_a_difference_of_one_grey_level_is_48_db() -> None:
    grey = torch.full((2, 16, 16, 3), 100, dtype=torch.uint8)
    assert psnr(grey + 1, grey) == pytest.approx(48.13, abs=0.01)


def test_similarity_is_one_for_the_same_and_falls_with_noise_and_shift() -> None:
    clean = (torch.arange(24).view(1, 1, 24, 1) * 10).expand(2, 24, 24, 3).to(torch.uint8)
    noisy = (clean.int() + torch.randint(-20, 21, clean.shape)).clamp(0, 255).to(torch.uint8)
    assert ssim(clean, clean) == pytest.approx(1)
    assert 0.2 < ssim(noisy, clean) < 0.95
    assert ssim(frames(2), clean) < 0.2


def test_similarity_of_constant_pictures_is_that_of_their_brightness() -> None:
    dark, bright = (torch.full((1, 16, 16, 3), level, dtype=torch.uint8) for level in (51, 102))
    assert ssim(dark, bright) == pytest.approx((2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4), rel=1e-4)


def test_a_blurred_frame_is_less_sharp() -> None:
    sharp = frames(2)
    blurred = (
        torch.nn.functional.avg_pool2d(sharp.float().movedim(3, 1), 3, 1, 1).movedim(1, 3).to(torch.uint8)
    )
    assert (sharpness(blurred) < 0.5 * sharpness(sharp)).all()
    assert sharpness(torch.full((1, 8, 8, 3), 9, dtype=torch.uint8)).item() == 0


def test_histograms_are_as_far_apart_as_their_colours_differ() -> None:
    black = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    half = black.clone()
    half[:, :2] = 255
    assert histogram_distance(black, black).item() == 0
    assert histogram_distance(half, black).item() == pytest.approx(0.5)
    assert histogram_distance(black + 255, black).item() == pytest.approx(1)


def test_interval_of_a_mean_is_that_of_student() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    # 2.776 is the quantile for 4 degrees of freedom.
    assert (mean, high - mean) == (3, pytest.approx(2.776 * (2.5 / 5) ** 0.5, rel=5e-3))
    assert low == pytest.approx(6 - high)
    assert mean_interval([7.0]) == (7, 7, 7)
