"""Paces of denoising as rows, as lines on the terminal and as a page with a plot."""

import os
import statistics
from collections.abc import Mapping, Sequence

from ..records.figures import draw, to_svg
from ..records.html_page import Table, write_report
from ..records.rows import BenchRow, Gate, Setting, activation_dtype, make_rows
from .step_pace import StepResult


def plot_steps(results: Sequence[StepResult]) -> str:
    """One bar a variant, the first on top."""
    with draw(1) as (figure, (axes,)):
        names = [_title(result) for result in results]
        steps = [result.pace.step for result in results]
        waits = [statistics.median(result.pace.waits) for result in results]
        places = range(len(results))
        axes.barh(places, steps, color="#0072B2", height=0.6, label="seconds a step")
        if any(waits):
            axes.barh(places, waits, color="#D55E00", height=0.6, label="of them waiting for copies")
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.set(xlabel="seconds")
        figure.legend(ncols=2, loc="outside upper right")
        return to_svg(figure)


HEADER = (
    f"{'precision':12}{'attention':14}{'step cache':11}{'s/it':>9}{'s/frame':>9}{'s/section':>10}{'TFLOP/s':>9}"
    f"{'computed':>9}{'roofline':>9}{'of card':>8}{'H2D GB/it':>10}{'waits s/it':>11}{'error':>9}"
)


def line(result: StepResult) -> str:
    """One result as a line of the table that :data:`HEADER` heads."""
    variant, pace = result.variant, result.pace
    return (
        f"{variant.precision:12}{result.attention:14}{variant.step_cache:11}{pace.step:9.4g}{pace.frame:9.4g}"
        f"{pace.section:10.4g}{pace.flops / 1e12:9.4g}{pace.computed_share:9.0%}{_percent(result.roofline):>9}"
        f"{_percent(result.share):>8}{statistics.median(pace.copied) / 1e9:10.3g}{statistics.median(pace.waits):11.3g}"
        f"{result.error:9.1e}"
    )


def pace_rows(
    result: StepResult, model: str, operations: Gate, settings: Mapping[str, Setting]
) -> list[BenchRow]:
    """Rows of one result of ``model``; ``operations`` is the check of the kernels."""
    variant = result.variant
    return make_rows(
        ((f"pace-{name}", model, unit, values) for name, (unit, values) in _quantities(result).items()),
        dtype=activation_dtype(variant.precision, str(settings["device"])),
        precision=variant.precision,
        gate=Gate(
            is_green=operations.is_green and result.gate.is_green,
            text=f"{operations.text}; {result.gate.text}; latents' relative RMS to the first variant {result.error:.2e}",
        ),
        settings={
            **settings,
            "step_cache": variant.step_cache,
            "attention": variant.attention,
            "attention_used": result.attention,
        },
    )


def _quantities(result: StepResult) -> dict[str, tuple[str, tuple[float, ...]]]:
    """Unit and values of everything that a result says, by its name."""
    pace = result.pace
    found: dict[str, tuple[str, tuple[float, ...]]] = {
        "step": ("s/it", pace.steps),
        "section": ("s/section", pace.sections),
        "frame": ("s/frame", tuple(seconds / pace.num_frames for seconds in pace.sections)),
        "flops": ("TFLOP/s", (pace.flops / 1e12,)),
        "computed": ("ratio", (pace.computed_share,)),
        "host-peak": ("B", (float(pace.peak_rss),)),
        "copied": ("B/it", pace.copied),
        "wait": ("s/it", pace.waits),
        "error": ("ratio", (result.error,)),
    }
    if pace.peak_allocated is not None:
        found["device-peak"] = ("B", (float(pace.peak_allocated),))
    if result.share is not None:
        found["share-of-card"] = ("ratio", (result.share,))
    if result.roofline is not None:
        found["share-of-roofline"] = ("ratio", (result.roofline,))
    return found


def write_step_report(
    path: str | os.PathLike[str], title: str, results: Sequence[StepResult], rows: Sequence[BenchRow]
) -> None:
    """Write the page of the results of one model."""
    fastest = min(results, key=lambda result: result.pace.step)
    write_report(
        path,
        title=f"Pace: {title}",
        status="passed",
        verdict=f"The fastest, {_title(fastest)}: {fastest.pace.step:.3g} s a step, {fastest.pace.frame:.3g} s a frame, "
        f"{fastest.pace.section:.3g} s a section.",
        rows=rows,
        figures=[("A step of each variant", plot_steps(results))],
        tables=[_pace_table(results), _roofline_table(results)],
    )


def _pace_table(results: Sequence[StepResult]) -> Table:
    return Table(
        caption="Pace",
        header=("variant", "s/it", "s/frame", "s/section", "computed", "error"),
        rows=[
            (
                _title(result),
                f"{result.pace.step:.4g}",
                f"{result.pace.frame:.4g}",
                f"{result.pace.section:.4g}",
                f"{result.pace.computed_share:.0%}",
                f"{result.error:.1e}",
            )
            for result in results
        ],
        note="Error: relative RMS of the latents to those of the first variant.",
    )


def _roofline_table(results: Sequence[StepResult]) -> Table:
    return Table(
        caption="Share of the roofline",
        header=(
            "variant",
            "TFLOP/s",
            "roofline",
            "of what the card should do",
            "H2D GB/it",
            "waits s/it",
            "likely reason",
        ),
        rows=[
            (
                _title(result),
                f"{result.pace.flops / 1e12:.4g}",
                _percent(result.roofline),
                _percent(result.share),
                f"{statistics.median(result.pace.copied) / 1e9:.3g}",
                f"{statistics.median(result.pace.waits):.3g}",
                "; ".join(result.reasons) or "-",
            )
            for result in results
        ],
        note="Roofline: the best rate of the tensor cores in the format of the products. What the card should do: the "
        "planner's expectation with the copies that were made. Both are known of the cards in the table alone.",
    )


def _title(result: StepResult) -> str:
    return f"{result.variant.precision}, {result.attention}, {result.variant.step_cache}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
