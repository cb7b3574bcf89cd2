"""Optical flow by Lucas and Kanade (1981), dense and coarse to fine, and what is left of a video's changes after it.

A plain estimate without learned weights: it follows small motions of smooth pictures, and says nothing where a picture
has no texture.
"""

import torch
from torch import Tensor
from torch.nn import functional

from .frame_metrics import gaussian_blur, luma

_NUM_LEVELS, _NUM_ITERATIONS = 3, 4
_WINDOW, _DEVIATION = 9, 2.0
# Keeps flat regions still: gradients of a grey level in 255 count for little.
_DAMPING = 1e-5
# A step of more than a pixel leaves the range in which the pictures are taken for linear.
_MAX_STEP = 1.0


def warping_errors(frames: Tensor) -> Tensor:
    """Mean brightness difference [T], of 1, between every frame and the next one moved back along the flow.

    What moves as a whole costs nothing, what flickers or deforms does; Lai et al. 2018 call it the warping error. The
    last frame repeats its neighbour's. ``frames`` are uint8 [T, H, W, 3], at least two.
    """
    images = luma(frames).unsqueeze(1)
    before, after = images[:-1], images[1:]
    errors = (_warp(after, lucas_kanade(before, after)) - before).abs().mean((1, 2, 3))
    return torch.cat((errors, errors[-1:]))


def lucas_kanade(before: Tensor, after: Tensor) -> Tensor:
    """Motion in pixels [N, 2, H, W], x then y, from brightness ``before`` to ``after``, both [N, 1, H, W] from 0 to 1."""
    pyramid = [(before, after)]
    while len(pyramid) < _NUM_LEVELS and min(pyramid[-1][0].shape[2:]) >= 2 * _WINDOW:
        pyramid.append(tuple(functional.avg_pool2d(image, 2) for image in pyramid[-1]))  # type: ignore[arg-type]  # two
    flow = torch.zeros(before.shape[0], 2, *pyramid[-1][0].shape[2:])
    for first, second in reversed(pyramid):
        if flow.shape[2:] != first.shape[2:]:
            flow = 2 * functional.interpolate(
                flow, size=first.shape[2:], mode="bilinear", align_corners=False
            )
        for _ in range(_NUM_ITERATIONS):
            flow = flow + _step(first, _warp(second, flow))
    return flow


def _step(before: Tensor, after: Tensor) -> Tensor:
    """The motion that is left: least squares of gradient times motion plus change in time, in a window."""
    mean = (before + after) / 2
    gradient_x, gradient_y = (_slope(mean, axis) for axis in (3, 2))
    change = after - before
    xx = _smooth(gradient_x * gradient_x) + _DAMPING
    yy = _smooth(gradient_y * gradient_y) + _DAMPING
    xy = _smooth(gradient_x * gradient_y)
    xt = _smooth(gradient_x * change)
    yt = _smooth(gradient_y * change)
    determinant = xx * yy - xy * xy
    step = torch.cat((xy * yt - yy * xt, xy * xt - xx * yt), dim=1) / determinant
    return step.clamp(-_MAX_STEP, _MAX_STEP)


def _smooth(x: Tensor) -> Tensor:
    """A weighted mean over the window; the edge is repeated."""
    edge = _WINDOW // 2
    return gaussian_blur(functional.pad(x, (edge,) * 4, mode="replicate"), _WINDOW, _DEVIATION)


def _slope(image: Tensor, axis: int) -> Tensor:
    """Central differences; the edge is repeated."""
    pad = (1, 1, 0, 0) if axis == 3 else (0, 0, 1, 1)
    padded = functional.pad(image, pad, mode="replicate")
    size = image.shape[axis]
    return (padded.narrow(axis, 2, size) - padded.narrow(axis, 0, size)) / 2


def _warp(image: Tensor, flow: Tensor) -> Tensor:
    """``image`` at the places where ``flow`` leads, bilinear; beyond the edge it is repeated."""
    height, width = image.shape[2:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    # grid_sample counts from -1 to 1 between the outer edges of the corner pixels.
    grid_x = (2 * (x + flow[:, 0]) + 1) / width - 1
    grid_y = (2 * (y + flow[:, 1]) + 1) / height - 1
    grid = torch.stack((grid_x, grid_y), dim=3)
    return functional.grid_sample(image, grid, padding_mode="border", align_corners=False)
