"""``bench peers``: a section or a video of one model by us and by diffusers, as a line and as rows."""

import statistics
from dataclasses import dataclass

import torch

from ...engine.demo import find_example
from ...engine.generation.model_lookup import find_model
from ...engine.request.config import Request
from ..records.rows import BenchRow, Setting, activation_dtype, in_words
from . import peer_section as section
from . import peer_video as video
from .in_turn import PeerResult

Compared = tuple[str, list[BenchRow]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersBench:
    """What is compared.

    Attributes:
        model: as ``Engine.load`` takes it.
        device: where both run.
        size: (height, width) in pixels; None is the model's first bucket.
        steps: of a section.
        repeats: of each.
    """

    model: str
    device: torch.device
    size: tuple[int, int] | None
    steps: int
    repeats: int

    def compare_sections(self, precision: str) -> Compared:
        """The denoising of a section."""
        result = section.compare_sections(
            self.model,
            device=self.device,
            precision=precision,
            size=self.size,
            num_steps=self.steps,
            repeats=self.repeats,
        )
        gate = f"relative RMS of the latents {result.error:.2e} <= {section.MAX_ERRORS[precision]:.0e}"
        return self._describe("section", result, precision, gate, {})

    def compare_videos(
        self,
        precision: str,
        *,
        seconds: float,
        order: str,
        is_offloaded: bool = False,
        vram: str | None = None,
    ) -> Compared:
        """A whole video of the demo's first example."""
        image, prompt = find_example(None)
        request = Request(
            image=str(image),
            prompt=prompt,
            seconds=seconds,
            size=self.size or find_model(self.model).buckets[0],
            order=order,
            num_steps=self.steps,
            sampler="euler",
        )
        result = video.compare_pipelines(
            self.model,
            request,
            device=self.device,
            precision=precision,
            repeats=self.repeats,
            is_offloaded=is_offloaded,
            vram=vram,
        )
        gate = f"relative RMS of the frames {result.error:.2e} <= {video.MAX_FRAME_ERRORS[precision]:.0e}"
        settings: dict[str, Setting] = {
            "seconds": seconds,
            "order": order,
            "offload": "group" if is_offloaded else "none",
            "vram": vram,
        }
        return self._describe("video", result, precision, gate, settings)

    def _describe(
        self, what: str, result: PeerResult, precision: str, gate: str, settings: dict[str, Setting]
    ) -> Compared:
        theirs, ours = (statistics.median(times) for times in (result.diffusers_times, result.isoframe_times))
        low, high = result.interval
        line = (
            f"{self.model} {precision}: diffusers {theirs:.4g} s/{what}  isoframe {ours:.4g} s/{what}  ratio "
            f"{result.ratio:.3f} (95 % {low:.3f} to {high:.3f}; pairs {result.spread[0]:.3f} to {result.spread[1]:.3f}; "
            f"error {result.error:.1e})"
        )
        shared: dict[str, Setting] = {
            "model": self.model,
            "steps": self.steps,
            "size": "auto" if self.size is None else in_words(self.size),
            "device": str(self.device),
        }
        return line, result.rows(
            f"peers-{what}",
            f"s/{what}",
            gate,
            dtype=activation_dtype(precision, self.device.type),
            precision=precision,
            settings=shared | settings,
        )
