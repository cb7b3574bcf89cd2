"""Signed distances of the drawn shapes; negative inside, in canvas pixels."""

import math

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star")
# Turns after which a shape looks the same; the circle does not show its rotation.
SYMMETRIES = {"square": 4, "triangle": 3, "star": 5}


def signed_distance(shape: str, u: Tensor, v: Tensor, radius: Tensor) -> Tensor:
    """Distance to the outline of ``shape``.

    Args:
        shape: one of SHAPES.
        u: coordinates along the shape's own x axis, any shape.
        v: coordinates along its own y axis (down), broadcastable with u.
        radius: size in the same units; no shape reaches further than 1.2 times this.
    """
    if shape == "circle":
        return (u * u + v * v).sqrt() - radius * 0.95
    if shape == "square":
        return torch.maximum(u.abs(), v.abs()) - radius * 0.85
    if shape == "triangle":
        sides = torch.maximum(-0.5 * v + 0.866 * u, -0.5 * v - 0.866 * u)
        return torch.maximum(v, sides) - radius * 0.6
    sector = torch.atan2(u, -v) / (2 * math.pi) * 5
    tip = ((sector - sector.floor()) - 0.5).abs() * 2
    # 0.75 makes the slanted radial distance about as steep as a true one, so that edges are one pixel wide.
    return ((u * u + v * v).sqrt() - radius * (0.56 + 0.62 * tip)) * 0.75


def coverage(distance: Tensor) -> Tensor:
    """Share of a pixel that the shape covers, from the distance of its centre in pixels."""
    return (0.5 - distance).clamp(0, 1)
