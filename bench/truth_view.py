"""``bench quality --what truth``: orders and approximate options against the formulas, in lines, pictures and rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from torch import Tensor

from ..engine.config import EngineConfig
from ..engine.engine import Engine
from ..engine.errors import ConfigError
from .contact_sheet import save_rows
from .option_errors import OPTIONS, Option
from .quality import QualityRow, draw_frames, held_out_scene, make_request, measure_baselines, measure_quality
from .quality_views import QualityView
from .rows import BenchRow, Gate, append_rows

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
        if self.view.json_file is not None:
            append_rows(self.view.json_file, [found for row in rows for found in _bench_rows(row)])
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


def _bench_rows(row: QualityRow) -> Iterator[BenchRow]:
    gate = Gate(is_green=row.is_reached, text="quality targets of the demo model")
    for name, unit in _UNITS.items():
        yield BenchRow(
            case=f"quality-{name}",
            variant=row.name,
            shape=(row.num_pairs, row.num_frames, row.num_steps),
            dtype="float32",
            unit=unit,
            values=(getattr(row, name),),
            gate=gate,
        )
