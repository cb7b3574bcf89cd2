"""Whether a video gets worse with its length: its beginning and its end against the formulas of the demo's world.

Of every measure the distance to the truth counts, so that what the truth itself changes is no drift:
drift = |mean of the last 15 % of the frames - mean of the first 15 %|.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...engine.engine import Engine
from ...engine.model.packing import ContextGroup
from ...engine.request.config import Request
from ...engine.sampling.history import History
from ..meters.method_watch import replace
from ..records.trend import mean_interval
from .clip_scores import FPS, aligned_iou, draw_frames, generate_frames, held_out_scene, segment, to_uint8
from .frame_metrics import histogram_distance, sharpness
from .optical_flow import warping_errors
from .world import Scene, center_of_mass, render, truth

MEASURES = {
    "sharpness": "mean brightness gradient, relative to the truth's",
    "colour": "distance of the colour histograms, 0 to 1",
    "shape": "1 - intersection over union of the aligned masks",
    "position": "distance of the centres, in widths",
    "change": "change from frame to frame, relative to the truth's",
    "flow": "part of the change from frame to frame that no motion explains, relative to the truth's change",
}
_SHARE = 0.15
_NUM_PICTURED = 4

MakeFrames = Callable[[Scene], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftResult:
    """One way to make videos.

    Attributes:
        name: of the way.
        num_frames: of a video.
        drifts: by measure, one value a scene.
        pictured: the first videos, uint8 [T, H, W, 3].
    """

    name: str
    num_frames: int
    drifts: Mapping[str, tuple[float, ...]]
    pictured: tuple[Tensor, ...]

    def describe(self) -> str:
        """Means and 95 % intervals in a line."""
        parts = []
        for name, values in self.drifts.items():
            mean, low, high = mean_interval(values)
            parts.append(f"{name} {mean:.3f} ({low:.3f} to {high:.3f})")
        return f"{self.name:14} {'  '.join(parts)}"


def measure_drift(make_frames: MakeFrames, *, name: str, num_pairs: int) -> DriftResult:
    """Drift of the videos, uint8 [T, H, W, 3], that ``make_frames`` makes of held-out scenes."""
    found: dict[str, list[float]] = {measure: [] for measure in MEASURES}
    pictured: list[Tensor] = []
    for index in range(num_pairs):
        scene = held_out_scene(index)
        frames = make_frames(scene)
        pictured += [frames] * (index < _NUM_PICTURED)
        for measure, distances in distances_to_truth(frames, scene).items():
            found[measure].append(drift(distances))
    return DriftResult(
        name=name,
        num_frames=len(pictured[0]),
        drifts={measure: tuple(values) for measure, values in found.items()},
        pictured=tuple(pictured),
    )


def drift(distances: Tensor) -> float:
    """Difference between the end and the beginning of values [T]."""
    count = max(round(_SHARE * len(distances)), 1)
    return abs(float(distances[-count:].mean() - distances[:count].mean()))


def distances_to_truth(frames: Tensor, scene: Scene) -> dict[str, Tensor]:
    """Every measure for every frame [T] of a video of ``scene``; zero for the truth."""
    times, size = torch.arange(len(frames)), frames.shape[1]
    expected, drawn = truth(scene, times, size=size), to_uint8(render(scene, times, size=size))
    masks = segment(frames.permute(0, 3, 1, 2).float() / 127.5 - 1, expected)
    overlaps = torch.tensor([aligned_iou(*pair) for pair in zip(masks, expected.masks, strict=True)])
    centres = (center_of_mass(masks) - expected.centers).norm(dim=1) / size
    centres[masks.sum((1, 2)) == 0] = 1.0
    expected_change = _changes(drawn).mean()
    return {
        "sharpness": sharpness(frames) / sharpness(drawn) - 1,
        "colour": histogram_distance(frames, drawn),
        "shape": 1 - overlaps,
        "position": centres,
        "change": (_changes(frames) - _changes(drawn)) / expected_change,
        "flow": (warping_errors(frames) - warping_errors(drawn)) / expected_change,
    }


def _changes(frames: Tensor) -> Tensor:
    """Mean absolute change of every frame to the next one, of 1; the last frame repeats its neighbour's."""
    changes = (frames[1:].float() - frames[:-1].float()).abs().mean((1, 2, 3)) / 255
    return torch.cat((changes, changes[-1:]))


def ways(engine: Engine, *, seconds: float, num_steps: int) -> dict[str, MakeFrames]:
    """Both orders of sampling, and two controls that must drift: without history, and by starting anew.

    Args:
        engine: a loaded demo model.
        seconds: length of each video.
        num_steps: denoising steps.
    """
    orders: dict[str, MakeFrames] = {
        order: partial(_generate, engine, seconds, order, num_steps) for order in ("inverted", "forward")
    }
    return orders | {
        "zero history": partial(without_history, engine, seconds=seconds, num_steps=num_steps),
        "naive restart": partial(restart, engine, seconds=seconds, num_steps=num_steps),
        "truth": lambda scene: draw_frames(scene, round(seconds * FPS)),
    }


def _generate(engine: Engine, seconds: float, order: str, num_steps: int, scene: Scene) -> Tensor:
    return generate_frames(engine, scene, seconds=seconds, order=order, num_steps=num_steps)


def without_history(engine: Engine, scene: Scene, *, seconds: float, num_steps: int) -> Tensor:
    """Forward sections that know the start image and nothing else."""
    groups = History.groups

    def forget(self: History, *arguments: Any) -> list[ContextGroup]:
        seen = groups(self, *arguments)
        for group in seen:
            # The start image is the first single frame.
            group.latents[:, :, 1 if group.kernel == 1 else 0 :] = 0
        return seen

    with replace(History, "groups", forget):
        return _generate(engine, seconds, "forward", num_steps, scene)


def restart(engine: Engine, scene: Scene, *, seconds: float, num_steps: int) -> Tensor:
    """Videos of one section, each started from the last frame of the one before."""
    image = to_uint8(render(scene, torch.zeros(1)))[0]
    parts: list[Tensor] = []
    while sum(len(part) for part in parts) < round(seconds * FPS):
        request = Request(
            image=image.numpy(),
            prompt=scene.prompt,
            seconds=1.2,
            fps=FPS,
            order="forward",
            num_steps=num_steps,
        )
        (section,) = engine.generate(request)
        # Its first frame is the image that it started from.
        parts.append(section.frames[1:] if parts else section.frames)
        image = section.frames[-1]
    return torch.cat(parts)
