"""Clips full of edges: several shapes drift, turn and overlap. Material for the VAE alone."""

import math
import random

import torch
from torch import Tensor

from isoframe.bench.quality.world import COLORS, SHAPES, coverage, signed_distance


def render_clutter(
    generator: torch.Generator, *, num_clips: int, num_frames: int, size: int, num_shapes: int
) -> Tensor:
    """Random clips [num_clips, 3, num_frames, size, size] in [-1, 1]."""
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
    axis = torch.arange(size).float() + 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    frames = torch.arange(num_frames) - num_frames / 2
    clips = []
    for _ in range(num_clips):
        clip = _draw_backdrop(rng, x, y)[:, None].expand(3, num_frames, size, size)
        for _ in range(num_shapes):
            color = torch.tensor(rng.choice(tuple(COLORS.values())), dtype=torch.float32)
            alpha = _draw_shape(rng, x, y, frames, size)
            clip = clip * (1 - alpha) + color[:, None, None, None] * alpha
        clips.append(clip)
    return (torch.stack(clips) / 127.5 - 1).clamp(-1, 1)


def _draw_backdrop(rng: random.Random, x: Tensor, y: Tensor) -> Tensor:
    """A gradient, in three clips of five with waves; [3, H, W] in 0 to 255."""
    size = x.shape[0]
    angle = rng.uniform(0, 2 * math.pi)
    share = ((x - size / 2) * math.cos(angle) + (y - size / 2) * math.sin(angle)) / 64 + 0.5
    ends = []
    for _ in range(2):
        gray = rng.uniform(70, 180)
        ends.append(torch.tensor([gray + rng.uniform(-35, 35) for _ in range(3)])[:, None, None])
    image = ends[0] * (1 - share) + ends[1] * share
    if rng.random() < 0.6:
        waves = rng.randint(0, 4) * x + rng.randint(-4, 4) * y
        image = image + rng.uniform(0, 12) * torch.sin(waves * (2 * math.pi / 64) + rng.uniform(0, 6.28))
    return image


def _draw_shape(rng: random.Random, x: Tensor, y: Tensor, frames: Tensor, size: int) -> Tensor:
    """Coverage of one drifting, turning, slowly scaling shape [T, H, W]; a quarter of them stay in place."""
    speed = 1.4 if rng.random() < 0.75 else 0.0
    center_x = rng.uniform(0, size) + speed * rng.gauss(0, 1) * frames
    center_y = rng.uniform(0, size) + speed * rng.gauss(0, 1) * frames
    angle = (rng.uniform(0, 2 * math.pi) + rng.gauss(0, 0.09) * frames)[:, None, None]
    radius = (rng.uniform(5, 16) * (1 + rng.gauss(0, 0.01) * frames).clamp(min=0.3))[:, None, None]
    dx, dy = x - center_x[:, None, None], y - center_y[:, None, None]
    u = angle.cos() * dx + angle.sin() * dy
    v = angle.cos() * dy - angle.sin() * dx
    return coverage(signed_distance(rng.choice(SHAPES), u, v, radius))
