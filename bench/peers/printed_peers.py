"""Comparisons with diffusers: lines and rows."""

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch

from ...engine.demo import find_example
from ...engine.generation.model_lookup import find_model
from ...engine.request.config import Request
from ..records.rows import BenchRow, Gate, Setting, append_rows
from . import section as peers
from . import video as peers_pipeline
from .section import PeerResult

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PeersView:
    """What is compared, and where the results go.

    Attributes:
        model: as ``Engine.load`` takes it.
        device: where both run.
        size: (height, width) in pixels; None is the model's first bucket.
        steps: of a section.
        repeats: of each.
        json_file: rows are appended to it; None for none.
    """

    model: str
    device: torch.device
    size: tuple[int, int] | None
    steps: int
    repeats: int
    json_file: Path | None

    def show_section(self, precision: str) -> str:
        """Compare the denoising of a section; a line."""
        result = peers.compare_sections(
            self.model,
            device=self.device,
            precision=precision,
            size=self.size,
            num_steps=self.steps,
            repeats=self.repeats,
        )
        gate = f"relative RMS of the latents {result.error:.2e} <= {peers.MAX_ERRORS[precision]:.0e}"
        self._store("section", result, precision, gate, {})
        return self._line("section", result, precision)

    def show_pipeline(
        self, precision: str, *, seconds: float, order: str, is_offloaded: bool, vram: str | None
    ) -> str:
        """Compare a whole video with that of diffusers' pipeline; a line."""
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
        result = peers_pipeline.compare_pipelines(
            self.model,
            request,
            device=self.device,
            precision=precision,
            repeats=self.repeats,
            is_offloaded=is_offloaded,
            vram=vram,
        )
        gate = f"relative RMS of the frames {result.error:.2e} <= {peers_pipeline.MAX_FRAME_ERRORS[precision]:.0e}"
        settings: dict[str, Setting] = {
            "seconds": seconds,
            "order": order,
            "offload": "group" if is_offloaded else "none",
            "vram": vram,
        }
        self._store("video", result, precision, gate, settings)
        return self._line("video", result, precision)

    def _line(self, what: str, result: PeerResult, precision: str) -> str:
        theirs, ours = (statistics.median(times) for times in (result.diffusers_times, result.isoframe_times))
        low, high = result.interval
        return (
            f"{self.model} {precision}: diffusers {theirs:.4g} s/{what}  isoframe {ours:.4g} s/{what}  ratio "
            f"{result.ratio:.3f} (95 % {low:.3f} to {high:.3f}; pairs {result.spread[0]:.3f} to {result.spread[1]:.3f}; "
            f"error {result.error:.1e})"
        )

    def _store(
        self, what: str, result: PeerResult, precision: str, gate: str, settings: dict[str, Setting]
    ) -> None:
        if self.json_file is None:
            return
        variants = (
            ("diffusers", f"s/{what}", result.diffusers_times),
            ("isoframe", f"s/{what}", result.isoframe_times),
            ("isoframe/diffusers", "ratio", (result.ratio,)),
        )
        shared: dict[str, Setting] = {
            "model": self.model,
            "steps": self.steps,
            "size": "auto" if self.size is None else "x".join(map(str, self.size)),
            "device": str(self.device),
        }
        append_rows(
            self.json_file,
            [
                BenchRow(
                    case=f"peers-{what}",
                    variant=variant,
                    shape=(),
                    dtype=_DTYPES[precision],
                    precision=precision,
                    unit=unit,
                    values=values,
                    gate=Gate(is_green=True, text=gate),
                    settings=shared | settings,
                )
                for variant, unit, values in variants
            ],
        )
