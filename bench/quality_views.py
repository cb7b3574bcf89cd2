"""``bench quality --what drift`` and ``--what errors``: lines, pictures and rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import typer

from ..engine.engine import Engine
from .contact_sheet import save_rows
from .correctness import check_operations
from .drift import MEASURES, DriftResult, measure_drift, ways
from .option_errors import OPTIONS, UNITS, ErrorBench, OptionErrors
from .rows import BenchRow, Gate, Setting, append_rows

_DRIFT_UNITS = dict.fromkeys(MEASURES, "ratio")


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
            settings: dict[str, Setting] = {"pairs": self.pairs, "steps": self.steps, "seconds": seconds}
            rows = [row for result in results for row in _drift_rows(result, engine.device, settings)]
            append_rows(self.json_file, rows)

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
                append_rows(self.json_file, _error_rows(errors, settings))
        if self.sheet is not None:
            save_rows(pictures, self.sheet / "options.png")


def _drift_rows(result: DriftResult, device: torch.device, settings: Mapping[str, Setting]) -> list[BenchRow]:
    gate = check_operations(device)
    return [
        _row(
            f"drift-{measure}",
            result.name,
            _DRIFT_UNITS[measure],
            values,
            gate,
            (result.num_frames,),
            settings,
        )
        for measure, values in result.drifts.items()
    ]


def _error_rows(errors: Iterable[OptionErrors], settings: Mapping[str, Setting]) -> list[BenchRow]:
    gate = check_operations(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return [
        _row(
            f"option-error-{metric}",
            error.option,
            UNITS[metric],
            values,
            gate,
            (error.num_sections,),
            {**settings, "sections": error.num_sections, "computed": error.computed_share},
        )
        for error in errors
        for metric, values in error.values.items()
    ]


def _row(
    case: str,
    variant: str,
    unit: str,
    values: tuple[float, ...],
    gate: Gate,
    shape: tuple[int, ...],
    settings: Mapping[str, Setting],
) -> BenchRow:
    precision = variant if variant in ("bf16", "int8", "int8-weight") else ""
    is_cuda = torch.cuda.is_available()
    return BenchRow(
        case=case,
        variant=variant,
        shape=shape,
        dtype="bfloat16" if is_cuda else "float32",
        precision=precision,
        unit=unit,
        values=values,
        gate=gate,
        settings=settings,
    )
