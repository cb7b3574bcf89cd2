"""How true the demo model's videos are, measured against the formulas of its world."""

import colorsys
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from ...engine.companions.components import find_components
from ...engine.companions.vae import VideoVAE
from ...engine.engine import Engine
from ...engine.events import Event, EventHandler, StepEvent
from ...engine.request.config import Request
from .world import MOTIONS, Scene, Truth, center_of_mass, render, sample_scene, truth

FPS = 30
_SEED = 31337
# Part of the width that the centre may be off.
_MAX_CENTER_ERROR = 1 / 16

Generate = Callable[[Scene, int], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClipScore:
    """How one video compares with its truth.

    Attributes:
        num_frames: frames of the video.
        share_on_path: share of frames whose mask centre is within 1/16 of the width of the true centre.
        center_error: median distance of the centres in pixels; the width where no shape is found.
        hue_error: mean hue error in degrees in the last second; None for white and black shapes.
        aligned_iou: mean intersection over union of the masks in the last second, centres aligned.
        area_ratio: mean area of the mask in the last second, relative to the truth.
        psnr: of the whole video against the drawn truth, in dB.
    """

    num_frames: int
    share_on_path: float
    center_error: float
    hue_error: float | None
    aligned_iou: float
    area_ratio: float
    psnr: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityRow:
    """Means of the clip scores over held-out scenes.

    Attributes:
        name: the order, and the option if there is one; or a baseline: "static" (the start frame) or "vae" (the truth,
            encoded and decoded).
        num_pairs: (image, prompt) pairs.
        num_frames: frames of each video.
        num_steps: denoising steps; 0 for a baseline.
        computed_share: part of the steps that ran the transformer.

    The other fields are the means of those of :class:`ClipScore`; of the centre error, the median.
    """

    name: str
    num_pairs: int
    num_frames: int
    num_steps: int
    computed_share: float
    share_on_path: float
    center_error: float
    hue_error: float
    aligned_iou: float
    area_ratio: float
    psnr: float

    @property
    def is_reached(self) -> bool:
        """Whether the demo's quality targets are met."""
        return (
            self.share_on_path >= 0.95
            and self.hue_error <= 10
            and self.aligned_iou >= 0.82
            and abs(self.area_ratio - 1) <= 0.15
        )


def held_out_scene(index: int) -> Scene:
    """Scene ``index`` of an endless list that no training draws from; motions take turns."""
    return sample_scene(random.Random(f"held-out-{index}"), motion=MOTIONS[index % len(MOTIONS)])


def measure_quality(
    engine: Engine,
    *,
    name: str,
    num_pairs: int,
    num_steps: int = 25,
    keep: Callable[[int, Tensor], None] = lambda index, frames: None,
    **changes: Any,
) -> QualityRow:
    """Generate ``num_pairs`` held-out videos and compare them with the truth.

    Args:
        engine: a loaded demo model.
        name: of the row.
        num_pairs: held-out (image, prompt) pairs.
        num_steps: denoising steps.
        keep: gets the frames of every scene.
        changes: fields of the request, as for :func:`generate_frames`.
    """
    computed: list[bool] = []

    def count(event: Event) -> None:
        if isinstance(event, StepEvent):
            computed.append(event.is_computed)

    scores = []
    for index in range(num_pairs):
        scene = held_out_scene(index)
        frames = generate_frames(engine, scene, on_event=count, num_steps=num_steps, **changes)
        keep(index, frames)
        scores.append(score_clip(frames, scene))
    return _mean_row(scores, name=name, num_steps=num_steps, computed_share=fmean(computed))


def measure_baseline(generate: Generate, *, name: str, num_pairs: int, num_frames: int) -> QualityRow:
    """Scores of ``generate``, which makes uint8 frames [T, H, W, 3] of a scene without the model."""
    scenes = [held_out_scene(index) for index in range(num_pairs)]
    scores = [score_clip(generate(scene, num_frames), scene) for scene in scenes]
    return _mean_row(scores, name=name, num_steps=0, computed_share=0)


def measure_baselines(*, num_pairs: int, num_frames: int) -> list[QualityRow]:
    """The start image standing still, and the truth after one trip through the demo's VAE."""
    demo = find_components("demo")
    vae = VideoVAE.load(demo.ref("vae"), demo.family.vae_class, device="cpu", dtype=torch.float32).model
    return [
        measure_baseline(static_frames, name="static", num_pairs=num_pairs, num_frames=num_frames),
        measure_baseline(partial(vae_frames, vae), name="vae", num_pairs=num_pairs, num_frames=num_frames),
    ]


def generate_frames(
    engine: Engine,
    scene: Scene,
    *,
    on_event: EventHandler | None = None,
    **changes: Any,
) -> Tensor:
    """The whole video of a scene's start image and prompt, uint8 [T, H, W, 3]; ``changes`` are fields of the request."""
    request = make_request(scene, **changes)
    sections = sorted(engine.generate(request, on_event=on_event), key=lambda section: section.first_frame)
    return torch.cat([section.frames for section in sections])


def make_request(scene: Scene, **changes: Any) -> Request:
    """What asks for the video of a scene; ``changes`` are fields of the request.

    Raises:
        ConfigError: they do not fit each other.
    """
    return Request(
        image=to_uint8(render(scene, torch.zeros(1)))[0].numpy(),
        prompt=scene.prompt,
        fps=FPS,
        allow_untrained=True,
        **{"seed": _SEED, **changes},
    )


def static_frames(scene: Scene, num_frames: int) -> Tensor:
    """The start image of ``scene`` repeated for the whole video, uint8 [T, H, W, 3]."""
    return to_uint8(render(scene, torch.zeros(num_frames)))


def draw_frames(scene: Scene, num_frames: int) -> Tensor:
    """The frames of ``scene`` as its formulas draw them, uint8 [T, H, W, 3]."""
    return to_uint8(render(scene, torch.arange(num_frames)))


def vae_frames(vae: Any, scene: Scene, num_frames: int) -> Tensor:
    """The truth after one trip through ``vae``, an AutoencoderKLHunyuanVideo: no model can be better."""
    with torch.no_grad():
        latents = vae.encode(render(scene, torch.arange(num_frames))[None]).latent_dist.mean
        decoded: Tensor = vae.decode(latents).sample[0]
    return to_uint8(decoded)


def to_uint8(frames: Tensor) -> Tensor:
    """[3, T, H, W] in [-1, 1] to uint8 [T, H, W, 3]."""
    return ((frames * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 3, 0)


def score_clip(frames: Tensor, scene: Scene) -> ClipScore:
    """Compare the uint8 frames [T, H, W, 3] of a video of ``scene`` with the truth."""
    num_frames, size = frames.shape[0], frames.shape[1]
    expected = truth(scene, torch.arange(num_frames), size=size)
    images = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    masks = segment(images, expected)
    distances = (center_of_mass(masks) - expected.centers).norm(dim=1)
    distances[masks.sum((1, 2)) == 0] = size
    drawn = to_uint8(render(scene, torch.arange(num_frames), size=size))
    squared = (frames.float() - drawn.float()).square().mean().clamp(min=1e-9)
    last = slice(-min(FPS, num_frames), None)
    return ClipScore(
        num_frames=num_frames,
        share_on_path=float((distances <= _MAX_CENTER_ERROR * size).float().mean()),
        center_error=float(distances.median()),
        hue_error=_hue_error(images[last], masks[last], expected.hue),
        aligned_iou=fmean(map(aligned_iou, masks[last], expected.masks[last])),
        area_ratio=float((masks[last].sum((1, 2)) / expected.masks[last].sum((1, 2))).mean()),
        psnr=float(10 * torch.log10(255**2 / squared)),
    )


def segment(images: Tensor, expected: Truth) -> Tensor:
    """Pixels [T, H, W] bool of ``images`` [T, 3, H, W] that are nearer to the shape's colour than to the background.

    Nearer along the line between the two colours, so that errors in other directions do not count.
    """
    direction = expected.color[:, None, None] - expected.background
    share = ((images - expected.background) * direction).sum(1) / direction.square().sum(0)
    mask: Tensor = share > 0.5
    return mask


def aligned_iou(mask: Tensor, expected: Tensor) -> float:
    """Intersection over union of two masks [H, W] after moving ``mask`` by whole pixels onto the other's centre."""
    if not mask.any():
        return 0.0
    offset = (center_of_mass(expected[None]) - center_of_mass(mask[None]))[0].round().int()
    moved = _shift(mask, int(offset[0]), int(offset[1]))
    return float((moved & expected).sum() / (moved | expected).sum())


def _shift(mask: Tensor, right: int, down: int) -> Tensor:
    """Move a mask [H, W]; what leaves the frame is lost, what enters is empty."""
    height, width = mask.shape
    moved = torch.zeros_like(mask)
    source = mask[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    moved[max(down, 0) : height - max(-down, 0), max(right, 0) : width - max(-right, 0)] = source
    return moved


def _hue_error(images: Tensor, masks: Tensor, hue: float | None) -> float | None:
    """Mean distance on the colour circle, in degrees, between ``hue`` and the mean colour inside each mask."""
    if hue is None:
        return None
    errors = []
    for image, mask in zip(images, masks, strict=True):
        if not mask.any():
            errors.append(180.0)
            continue
        red, green, blue = (image[:, mask].mean(1) * 0.5 + 0.5).clamp(0, 1).tolist()
        difference = abs(colorsys.rgb_to_hsv(red, green, blue)[0] * 360 - hue) % 360
        errors.append(min(difference, 360 - difference))
    return fmean(errors)


def _mean_row(scores: list[ClipScore], *, name: str, num_steps: int, computed_share: float) -> QualityRow:
    means = {
        field.name: _mean(getattr(score, field.name) for score in scores)
        for field in fields(ClipScore)
        if field.name not in ("num_frames", "center_error")
    }
    return QualityRow(
        name=name,
        num_pairs=len(scores),
        num_frames=scores[0].num_frames,
        num_steps=num_steps,
        computed_share=computed_share,
        center_error=median(score.center_error for score in scores),
        **means,
    )


def _mean(values: Iterable[float | None]) -> float:
    """Mean of the values that exist; zero of none."""
    present = [value for value in values if value is not None]
    return fmean(present) if present else 0.0
