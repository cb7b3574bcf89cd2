"""How far a result is from another: latents and frames, and single frames on their own."""

import math

import torch
from torch import Tensor
from torch.nn import functional

# Identical results have no finite ratio; this is what counts as no error.
MAX_DB = 200.0
_SSIM_SIZE, _SSIM_SIGMA = 11, 1.5
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
_LUMA = (0.2126, 0.7152, 0.0722)
_NUM_BINS = 8


def sqnr(actual: Tensor, expected: Tensor) -> float:
    """Signal over quantization noise in dB: 10 log10(sum e^2 / sum (a - e)^2), at most 200."""
    noise = float((actual.double() - expected.double()).square().sum())
    return _decibels(float(expected.double().square().sum()), noise)


def psnr(actual: Tensor, expected: Tensor) -> float:
    """Peak signal over noise of uint8 frames in dB, at most 200."""
    return _decibels(255.0**2, float((actual.double() - expected.double()).square().mean()))


def ssim(actual: Tensor, expected: Tensor) -> float:
    """Mean structural similarity of the luma of uint8 frames [T, H, W, 3].

    Wang et al. 2004: Gaussian window of 11 pixels and deviation 1.5, K1 = 0.01, K2 = 0.03, no padding.
    """
    x, y = luma(actual).double().unsqueeze(1), luma(expected).double().unsqueeze(1)
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + _SSIM_C1) * (2 * covariance + _SSIM_C2)
    denominator = (mean_x**2 + mean_y**2 + _SSIM_C1) * (var_x + var_y + _SSIM_C2)
    return float((numerator / denominator).mean())


def luma(frames: Tensor) -> Tensor:
    """Brightness [T, H, W] from 0 to 1 of uint8 frames [T, H, W, 3]."""
    weights = torch.tensor(_LUMA, dtype=torch.float32)
    return frames.float() @ weights / 255


def sharpness(frames: Tensor) -> Tensor:
    """Mean length of the brightness gradient of every uint8 frame [T, H, W, 3]: [T]."""
    bright = luma(frames)
    down = bright[:, 1:, :-1] - bright[:, :-1, :-1]
    right = bright[:, :-1, 1:] - bright[:, :-1, :-1]
    return torch.hypot(down, right).mean((1, 2))


def histogram_distance(actual: Tensor, expected: Tensor) -> Tensor:
    """Distance of the colour histograms of every frame [T], 0 (the same) to 1 (nothing in common).

    Eight bins a channel; half the sum of absolute differences, mean of the channels.
    """
    difference = _histograms(actual) - _histograms(expected)
    return difference.abs().sum(2).mean(1) / 2


def _histograms(frames: Tensor) -> Tensor:
    """Shares [T, 3, bins] of uint8 frames [T, H, W, 3]."""
    bins = frames.flatten(1, 2).long() * _NUM_BINS // 256
    return functional.one_hot(bins, _NUM_BINS).float().mean(1)


def gaussian_blur(x: Tensor, size: int, deviation: float) -> Tensor:
    """Blur ``x`` [N, 1, H, W] with a window of ``size`` pixels; without padding, the result is smaller by size - 1."""
    offsets = torch.arange(size, dtype=x.dtype) - size // 2
    window = torch.exp(-(offsets**2) / (2 * deviation**2))
    window = window / window.sum()
    return functional.conv2d(functional.conv2d(x, window.view(1, 1, -1, 1)), window.view(1, 1, 1, -1))


def _blur(x: Tensor) -> Tensor:
    return gaussian_blur(x, _SSIM_SIZE, _SSIM_SIGMA)


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return MAX_DB
    return min(10 * math.log10(signal / noise), MAX_DB) if signal else -MAX_DB
