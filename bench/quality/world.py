"""Procedural clips: one coloured shape moves over a soft background, as its prompt says.

Everything is a formula of the frame number, so the truth about any frame is known. Every motion repeats
after PERIOD frames, one section of FramePack: the phase of a section follows from its start frame alone, for any
number of sections and in both orders. Shapes are drawn from signed distances, negative inside, in canvas pixels.
"""

import colorsys
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SHAPES = ("circle", "square", "triangle", "star")
# Turns after which a shape looks the same; the circle does not show its rotation.
SYMMETRIES = {"square": 4, "triangle": 3, "star": 5}
CANVAS = 64
PERIOD = 36
TRAVEL = 20.0
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 70),
    "blue": (50, 90, 230),
    "yellow": (245, 225, 50),
    "purple": (150, 60, 200),
    "orange": (245, 140, 30),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
MOTIONS = ("moves right", "moves left", "moves up", "moves down", "bounces", "spins", "grows", "shrinks")
_MIN_CONTRAST = 85.0

Color = tuple[float, float, float]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """A linear gradient with a faint sinusoidal texture.

    Attributes:
        colors: the two ends of the gradient, RGB 0 to 255.
        angle: direction of the gradient in radians.
        texture: "none", "stripes" or "plaid".
        waves: texture periods across the canvas, in x and y.
        phase: texture phase in radians.
        amplitude: texture amplitude, 0 to 255.
    """

    colors: tuple[Color, Color]
    angle: float
    texture: str
    waves: tuple[int, int]
    phase: float
    amplitude: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One clip of the world.

    Attributes:
        color: name in COLORS.
        shape: name in SHAPES.
        motion: name in MOTIONS.
        x: centre in canvas pixels at frame 0.
        y: the same, downwards.
        radius: size in canvas pixels at frame 0.
        angle: rotation in radians at frame 0.
        background: what is behind.
    """

    color: str
    shape: str
    motion: str
    x: float
    y: float
    radius: float
    angle: float
    background: Background

    @property
    def prompt(self) -> str:
        """The sentence that describes the clip."""
        return describe(self.color, self.shape, self.motion)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is true about some frames of a scene.

    Attributes:
        centers: x and y of the mask's centre of mass in pixels [T, 2].
        masks: pixels that the shape covers by more than half [T, H, W] bool.
        background: the scene without its shape [3, H, W] in [-1, 1].
        color: the shape's colour [3] in [-1, 1].
        hue: the colour's hue in degrees; None for white and black.
    """

    centers: Tensor
    masks: Tensor
    background: Tensor
    color: Tensor
    hue: float | None


def describe(color: str, shape: str, motion: str) -> str:
    """The prompt of a clip."""
    return f"{'an' if color[0] in 'aeiou' else 'a'} {color} {shape} {motion}"


def sample_scene(
    rng: random.Random, *, motion: str | None = None, shape: str | None = None, color: str | None = None
) -> Scene:
    """A random scene whose shape stays inside the canvas; what is named is not drawn."""
    motion = motion or rng.choice(MOTIONS)
    # A circle does not show that it spins.
    shape = shape or rng.choice(SHAPES[1:] if motion == "spins" else SHAPES)
    color = color or rng.choice(tuple(COLORS))
    radius, margin = _sample_size(rng, motion)
    near, far = (margin, CANVAS - margin - TRAVEL), (margin + TRAVEL, CANVAS - margin)
    anywhere = (margin, CANVAS - margin)
    x_range = {"moves right": near, "moves left": far}.get(motion, anywhere)
    y_range = {"moves down": near, "moves up": far, "bounces": far}.get(motion, anywhere)
    return Scene(
        color=color,
        shape=shape,
        motion=motion,
        x=rng.uniform(*x_range),
        y=rng.uniform(*y_range),
        radius=radius,
        angle=0.0 if shape == "circle" else rng.uniform(-0.3, 0.3),
        background=_sample_background(rng, COLORS[color]),
    )


def _sample_size(rng: random.Random, motion: str) -> tuple[float, float]:
    """Radius at frame 0, and the distance from the edges at which the largest such shape stays inside."""
    if motion == "grows":
        return rng.uniform(8, 10.5), 22.0
    if motion == "shrinks":
        return rng.uniform(14, 17), 22.0
    return rng.uniform(10, 14), 18.0


def _sample_background(rng: random.Random, color: Sequence[float]) -> Background:
    colors = tuple(_sample_contrasting(rng, color) for _ in range(2))
    return Background(
        colors=(colors[0], colors[1]),
        angle=rng.uniform(0, 2 * math.pi),
        texture=rng.choice(("none", "stripes", "plaid")),
        waves=(rng.randint(1, 4), rng.randint(-4, 4)),
        phase=rng.uniform(0, 2 * math.pi),
        amplitude=rng.uniform(4, 10),
    )


def _sample_contrasting(rng: random.Random, color: Sequence[float]) -> Color:
    """A muted colour that differs visibly from ``color``."""
    while True:
        gray = rng.uniform(70, 180)
        red, green, blue = (min(255.0, max(0.0, gray + rng.uniform(-35, 35))) for _ in range(3))
        if math.dist((red, green, blue), color) >= _MIN_CONTRAST:
            return red, green, blue


def pose(scene: Scene, frames: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Centre x, centre y, radius and angle at ``frames`` [T] (any real numbers), each float32 [T]."""
    phase = (frames.double() % PERIOD) / PERIOD
    there_and_back = (1 - torch.cos(2 * math.pi * phase)) / 2
    x, y, radius, angle = (
        torch.full_like(phase, value) for value in (scene.x, scene.y, scene.radius, scene.angle)
    )
    match scene.motion:
        case "moves right":
            x = x + TRAVEL * there_and_back
        case "moves left":
            x = x - TRAVEL * there_and_back
        case "moves up":
            y = y - TRAVEL * there_and_back
        case "moves down":
            y = y + TRAVEL * there_and_back
        case "bounces":
            y = y - TRAVEL * torch.sin(math.pi * phase)
        case "spins":
            # Two of its symmetric turns a period: the picture repeats although the angle does not.
            angle = angle + phase * 2 * (2 * math.pi / SYMMETRIES[scene.shape])
        case "grows":
            radius = radius * (1 + 0.7 * there_and_back)
        case "shrinks":
            radius = radius * (1 - 0.45 * there_and_back)
    return x.float(), y.float(), radius.float(), angle.float()


def render(scene: Scene, frames: Tensor, *, size: int = CANVAS) -> Tensor:
    """Draw frames.

    Args:
        scene: the clip.
        frames: frame numbers [T].
        size: pixels a side.

    Returns:
        [3, T, size, size] in [-1, 1].
    """
    alpha = _alpha(scene, frames, size)
    background = _draw_background(scene.background, size)[:, None]
    return background * (1 - alpha) + _unit(torch.tensor(COLORS[scene.color]))[:, None, None, None] * alpha


def truth(scene: Scene, frames: Tensor, *, size: int = CANVAS) -> Truth:
    """What is true about ``frames`` [T] drawn at ``size`` pixels a side."""
    alpha = _alpha(scene, frames, size)
    red, green, blue = (channel / 255 for channel in COLORS[scene.color])
    hue, saturation, _ = colorsys.rgb_to_hsv(red, green, blue)
    return Truth(
        centers=center_of_mass(alpha),
        masks=alpha > 0.5,
        background=_draw_background(scene.background, size),
        color=_unit(torch.tensor(COLORS[scene.color])),
        hue=hue * 360 if saturation > 0 else None,
    )


def center_of_mass(weights: Tensor) -> Tensor:
    """x and y [T, 2] of the centre of mass of ``weights`` [T, H, W], in pixels; pixel i covers i to i + 1."""
    weights = weights.float()
    total = weights.sum((1, 2)).clamp(min=1e-6)
    x = (weights.sum(1) * (torch.arange(weights.shape[2]) + 0.5)).sum(1) / total
    y = (weights.sum(2) * (torch.arange(weights.shape[1]) + 0.5)).sum(1) / total
    return torch.stack([x, y], 1)


def pixel_grid(size: int) -> tuple[Tensor, Tensor]:
    """y and x of the pixel centres in canvas pixels, each [size, size]."""
    axis = (torch.arange(size, dtype=torch.float32) + 0.5) * (CANVAS / size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return y, x


def _alpha(scene: Scene, frames: Tensor, size: int) -> Tensor:
    """How much of each pixel the shape covers [T, size, size]."""
    x, y, radius, angle = (value[:, None, None] for value in pose(scene, frames))
    grid_y, grid_x = pixel_grid(size)
    dx, dy = grid_x - x, grid_y - y
    cos, sin = angle.cos(), angle.sin()
    distance = signed_distance(scene.shape, cos * dx + sin * dy, cos * dy - sin * dx, radius)
    return coverage(distance * (size / CANVAS))


def _draw_background(background: Background, size: int) -> Tensor:
    """The background as a picture [3, size, size] in [-1, 1]."""
    y, x = pixel_grid(size)
    middle, wave = CANVAS / 2, 2 * math.pi / CANVAS
    slope = (x - middle) * math.cos(background.angle) + (y - middle) * math.sin(background.angle)
    share = (slope / CANVAS + 0.5).clamp(0, 1)
    first, second = (torch.tensor(color)[:, None, None] for color in background.colors)
    image = first * (1 - share) + second * share
    waves_x, waves_y = background.waves
    if background.texture == "stripes":
        image = image + background.amplitude * torch.sin(
            wave * (waves_x * x + waves_y * y) + background.phase
        )
    if background.texture == "plaid":
        across = torch.sin(wave * waves_x * x + background.phase)
        down = torch.sin(wave * (abs(waves_y) + 1) * y + background.phase)
        image = image + background.amplitude * across * down
    return _unit(image)


def _unit(rgb: Tensor) -> Tensor:
    """Map colours from 0 to 255 to [-1, 1]."""
    return (rgb / 127.5 - 1).clamp(-1, 1)
