"""``bench quality``: videos against the truth, their drift, and errors of options, as lines, pictures and rows."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from ...engine.engine import Engine
from ...engine.errors import ConfigError
from ...engine.request.config import EngineConfig
from ..operations.correctness import check_operations
from ..records.command_options import append
from ..records.rows import BenchRow, Gate, Setting, make_rows
from .clip_scores import (
    QualityRow,
    draw_frames,
    held_out_scene,
    make_request,
    measure_baselines,
    measure_quality,
)
from .contact_sheet import save_rows
from .drift import measure_drift, ways
from .option_errors import OPTIONS, UNITS, ErrorBench, Option, OptionErrors

_HEADER = (
    f"{'':26}{'videos':>7}{'frames':>7}{'computed':>9}{'on path':>9}{'centre px':>10}{'hue deg':>9}{'IoU':>7}{'area':>7}"
    f"{'PSNR':>7}"
)
_UNITS = {
    "computed_share": "ratio",
    "share_on_path": "ratio",
    "center_error": "px",
    "hue_error": "degrees",
    "aligned_iou": "ratio",
    "area_ratio": "ratio",
    "psnr": "dB",
}
# Rows of a contact sheet that can still be taken in.
_MAX_SHEET_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityView:
    """What is measured over how much, and where it goes.

    Attributes:
        pairs: held-out (image, prompt) pairs.
        steps: denoising steps.
        sheet: folder for pictures; None for none.
        json_file: rows are appended to it; None for none.
    """

    pairs: int
    steps: int
    sheet: Path | None
    json_file: Path | None

    def show_drift(self, seconds: float) -> None:
        """Measure the drift of every order and of the controls."""
        engine = Engine.load("demo")
        results = []
        for name, make_frames in ways(engine, seconds=seconds, num_steps=self.steps).items():
            results.append(measure_drift(make_frames, name=name, num_pairs=self.pairs))
            typer.echo(results[-1].describe())
            if self.sheet is not None:
                save_rows(results[-1].pictured, self.sheet / f"drift_{name.replace(' ', '_')}.png")
        if self.json_file is not None:
            shared = _shared(pairs=self.pairs, steps=self.steps, seconds=seconds)
            for result in results:
                quantities = [
                    (f"drift-{name}", result.name, "ratio", values) for name, values in result.drifts.items()
                ]
                append(self.json_file, make_rows(quantities, shape=(result.num_frames,), **shared))

    def show_errors(self, *, model: str, options: Sequence[str], order: str, sections: int) -> None:
        """Measure what every option of ``options``, or every known one, changes."""
        bench = ErrorBench(
            model=model,
            device="auto",
            num_pairs=self.pairs,
            num_sections=sections,
            num_steps=self.steps,
            order=order,
        )
        typer.echo(
            f"{'':20}{'sections':>9}{'computed':>10}  mean of {self.pairs} videos (95 % interval): SQNR dB, PSNR dB, SSIM"
        )
        settings: dict[str, Setting] = {
            "model": model,
            "order": order,
            "pairs": self.pairs,
            "steps": self.steps,
        }
        pictures = [bench.exact[0].frames]
        for name in options or OPTIONS:
            errors, samples = bench.compare(name)
            for error in errors:
                typer.echo(error.describe())
            if not errors:
                typer.echo(f"{name:20} does not run here")
            pictures += [sample.frames for sample in samples[:1]]
            if self.json_file is not None:
                append(self.json_file, _error_rows(errors, settings))
        if self.sheet is not None:
            save_rows(pictures, self.sheet / "options.png")


def _shared(**settings: Setting) -> dict[str, Any]:
    """Fields of all rows of a measurement on this machine."""
    has_cuda = torch.cuda.is_available()
    return {
        "dtype": "bfloat16" if has_cuda else "float32",
        "gate": check_operations(torch.device("cuda" if has_cuda else "cpu")),
        "settings": settings,
    }


def _error_rows(errors: Iterable[OptionErrors], settings: Mapping[str, Setting]) -> list[BenchRow]:
    return [
        row
        for error in errors
        for row in make_rows(
            (
                (f"option-error-{metric}", error.option, UNITS[metric], values)
                for metric, values in error.values.items()
            ),
            shape=(error.num_sections,),
            precision=error.option if error.option in ("bf16", "int8", "int8-weight") else "",
            **_shared(**settings, sections=error.num_sections, computed=error.computed_share),
        )
    ]


@dataclass(frozen=True, slots=True)
class TruthView:
    """Videos of the demo model beside the truth.

    Attributes:
        view: over how much, and where it goes.
        seconds: length of each video.
        history_codebook: centroids that the history is moved to; None for none.
        schedule: how the history is packed; None for the published layouts.
    """

    view: QualityView
    seconds: float
    history_codebook: Path | None
    schedule: str | None = None

    def show(self, orders: Sequence[str], options: Sequence[str], has_baselines: bool) -> bool:
        """Measure every order, alone and with every option; whether all reach the targets.

        Raises:
            ConfigError: one of the orders cannot be measured; none was then.
        """
        for order in orders:
            make_request(held_out_scene(0), num_steps=self.view.steps, **self._changes(order))
        typer.echo(_HEADER)
        rows = [row for order in orders for row in self._show_order(order, options)]
        if has_baselines:
            baselines = measure_baselines(num_pairs=self.view.pairs, num_frames=rows[0].num_frames)
            for baseline in baselines:
                typer.echo(_line(baseline))
            rows += baselines
        append(self.view.json_file, [found for row in rows for found in _truth_rows(row)])
        return all(row.is_reached for row in rows if row.num_steps)

    def _show_order(self, order: str, options: Sequence[str]) -> Iterator[QualityRow]:
        sheet = _Sheet(num_scenes=min(self.view.pairs, _MAX_SHEET_ROWS // (2 + len(options))))
        for name, option in {"": Option(), **{name: OPTIONS[name] for name in options}}.items():
            label = " ".join(part for part in (order, self.schedule, name) if part)
            try:
                row = self._measure(label, order, option, sheet)
            except ConfigError as error:
                if not name:
                    raise
                typer.echo(f"{label:26} does not run: {error}")
                continue
            typer.echo(_line(row))
            yield row
        if self.view.sheet is not None:
            save_rows(sheet.rows(), self.view.sheet / f"demo_{order}.png")

    def _measure(self, label: str, order: str, option: Option, sheet: "_Sheet") -> QualityRow:
        with Engine.load("demo", config=EngineConfig(**option.config)) as engine:
            return measure_quality(
                engine,
                name=label,
                num_pairs=self.view.pairs,
                num_steps=self.view.steps,
                keep=sheet.keep,
                **self._changes(order),
                **option.request,
            )

    def _changes(self, order: str) -> dict[str, Any]:
        """Fields of the requests that all options share."""
        return {
            "seconds": self.seconds,
            "order": order,
            "history_codebook": self.history_codebook,
            "schedule": self.schedule,
        }


@dataclass(slots=True)
class _Sheet:
    """Videos of the first scenes.

    Attributes:
        num_scenes: how many are kept.
        videos: by scene, in the order in which they came.
    """

    num_scenes: int
    videos: dict[int, list[Tensor]] = field(default_factory=dict)

    def keep(self, index: int, frames: Tensor) -> None:
        if index < self.num_scenes:
            self.videos.setdefault(index, []).append(frames)

    def rows(self) -> list[Tensor]:
        """The truth of every scene above its videos."""
        return [
            row
            for index, videos in self.videos.items()
            for row in (draw_frames(held_out_scene(index), len(videos[0])), *videos)
        ]


def _line(row: QualityRow) -> str:
    verdict = "" if not row.num_steps else "  reached" if row.is_reached else "  MISSED"
    computed = f"{row.computed_share:.0%}" if row.num_steps else "-"
    return (
        f"{row.name:26}{row.num_pairs:7d}{row.num_frames:7d}{computed:>9}{row.share_on_path:9.1%}"
        f"{row.center_error:10.2f}{row.hue_error:9.1f}{row.aligned_iou:7.3f}{row.area_ratio:7.2f}{row.psnr:7.1f}{verdict}"
    )


def _truth_rows(row: QualityRow) -> list[BenchRow]:
    return make_rows(
        ((f"quality-{name}", row.name, unit, [getattr(row, name)]) for name, unit in _UNITS.items()),
        shape=(row.num_pairs, row.num_frames, row.num_steps),
        dtype="float32",
        gate=Gate(is_green=row.is_reached, text="quality targets of the demo model"),
    )
