"""What every approximate option changes: latents and frames beside those of the exact path, same seed and image."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...engine.engine import Engine
from ...engine.errors import DeviceError
from ...engine.events import Event, StepEvent
from ...engine.request.config import ATTENTIONS, EngineConfig, Request
from ..records.trend import mean_interval
from .clip_scores import FPS, held_out_scene, to_uint8
from .frame_metrics import psnr, sqnr, ssim
from .world import Scene, render

UNITS = {"sqnr": "dB", "psnr": "dB", "ssim": "ratio"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One approximate option.

    Attributes:
        config: fields of ``EngineConfig``.
        request: fields of ``Request``.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    request: Mapping[str, Any] = field(default_factory=dict)


OPTIONS: dict[str, Option] = {
    **{
        precision: Option(config={"precision": precision})
        for precision in ("bf16", "fp16", "int8-weight", "int8", "fp8", "nf4")
    },
    **{
        f"attention-{name}": Option(config={"attention": name})
        # What the exact path takes here is no option.
        for name in ATTENTIONS
        if name not in ("auto", "sdpa")
    },
    **{
        f"{name}-{threshold}": Option(request={"step_cache": name, "step_cache_threshold": threshold})
        for name, thresholds in (("teacache", (0.05, 0.1, 0.15, 0.25)), ("magcache", (0.06, 0.15, 0.24)))
        for threshold in thresholds
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One video, as far as it is compared.

    Attributes:
        latents: of every section in generation order, [1, C, window, Y, X].
        frames: uint8 [T, H, W, 3] in video order.
        computed_share: part of the steps that ran the transformer.
    """

    latents: tuple[Tensor, ...]
    frames: Tensor
    computed_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OptionErrors:
    """One option over all images.

    Attributes:
        option: its name.
        num_sections: sections of a video that are compared.
        computed_share: part of the steps that ran the transformer, mean.
        values: by metric, one value an image.
    """

    option: str
    num_sections: int
    computed_share: float
    values: Mapping[str, tuple[float, ...]]

    def describe(self) -> str:
        """Means and 95 % intervals in a line."""
        parts = []
        for name, values in self.values.items():
            mean, low, high = mean_interval(values)
            digits = 1 if UNITS[name] == "dB" else 4
            parts.append(f"{mean:8.{digits}f} ({low:.{digits}f} to {high:.{digits}f})")
        return f"{self.option:20}{self.num_sections:9d}{self.computed_share:10.0%}  {'  '.join(parts)}"


class ErrorBench:
    """Compares options with the exact path of one model, over held-out images and prompts.

    Attributes:
        exact: the exact videos, made once.
    """

    def __init__(
        self, *, model: str, device: str, num_pairs: int, num_sections: int, num_steps: int, order: str
    ) -> None:
        """Make the exact videos.

        Args:
            model: as ``Engine.load`` takes it.
            device: where all run.
            num_pairs: held-out (image, prompt) pairs.
            num_sections: sections of every video.
            num_steps: denoising steps.
            order: "inverted" or "forward".
        """
        self._model = model
        self._device = device
        self._num_sections = num_sections
        self._num_steps = num_steps
        self._order = order
        self._scenes = [held_out_scene(index) for index in range(num_pairs)]
        self.exact = list(self.samples(Option()))

    def samples(self, option: Option) -> Iterator[Sample]:
        """A video for every image."""
        engine = Engine.load(self._model, config=EngineConfig(device=self._device, **option.config))
        for scene in self._scenes:
            yield make_sample(engine, self._request(scene, option))

    def compare(self, name: str) -> tuple[list[OptionErrors], list[Sample]]:
        """Errors of an option after the first section and over all, and its videos; none where it does not run."""
        try:
            found = list(self.samples(OPTIONS[name]))
        except DeviceError:
            return [], []
        share = sum(sample.computed_share for sample in found) / len(found)
        return [self._judge(name, found, count, share) for count in sorted({1, self._num_sections})], found

    def _judge(self, name: str, found: list[Sample], num_sections: int, share: float) -> OptionErrors:
        figures = [
            compare_samples(actual, expected, num_sections, is_inverted=self._order == "inverted")
            for actual, expected in zip(found, self.exact, strict=True)
        ]
        return OptionErrors(
            option=name,
            num_sections=num_sections,
            computed_share=share,
            values={metric: tuple(figure[metric] for figure in figures) for metric in UNITS},
        )

    def _request(self, scene: Scene, option: Option) -> Request:
        return Request(
            image=to_uint8(render(scene, torch.zeros(1)))[0].numpy(),
            prompt=scene.prompt,
            seconds=self._num_sections * 36 / FPS,
            fps=FPS,
            order=self._order,
            num_steps=self._num_steps,
            **option.request,
        )


def make_sample(engine: Engine, request: Request) -> Sample:
    """The video of ``request``, its latents, and the part of its steps that were computed."""
    computed: list[bool] = []

    def on_event(event: Event) -> None:
        if isinstance(event, StepEvent):
            computed.append(event.is_computed)

    sections = list(engine.generate(request, on_event=on_event))
    ordered = sorted(sections, key=lambda section: section.first_frame)
    return Sample(
        latents=tuple(section.latents for section in sections),
        frames=torch.cat([section.frames for section in ordered]),
        computed_share=sum(computed) / len(computed),
    )


def compare_samples(
    actual: Sample, expected: Sample, num_sections: int, *, is_inverted: bool
) -> dict[str, float]:
    """Errors of the first ``num_sections`` sections in generation order, and of the frames that they add."""
    latents = [torch.cat(sample.latents[:num_sections], dim=2) for sample in (actual, expected)]
    num_frames = 4 * latents[0].shape[2]
    # In inverted order the end of the video comes first.
    part = slice(-num_frames, None) if is_inverted else slice(num_frames)
    is_whole = num_sections == len(expected.latents)
    frames = [sample.frames if is_whole else sample.frames[part] for sample in (actual, expected)]
    return {"sqnr": sqnr(*latents), "psnr": psnr(*frames), "ssim": ssim(*frames)}
