"""Memory ceilings as rows, as lines on the terminal and as a page."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...engine.request.sizes import format_size
from ..records.html_page import Table, write_report
from ..records.rows import BenchRow, Gate, Setting, activation_dtype, in_words, make_rows
from .ceiling_plots import plot_ceilings, plot_timeline
from .ceilings import MAX_WINDOW, Ceilings
from .point import Outcome

_GIB, _MIB = 2**30, 2**20
_NUM_OWNERS = 8


def describe(result: Ceilings) -> Iterator[str]:
    """Ceilings, curve and owners, line by line."""
    job = result.job
    settings = f"{job.model} in {job.precision}, {in_words(job.size)}, window {job.window}"
    yield f"{settings}: {result.basis}, {result.num_points} points"
    yield f"  least budget that finishes        {_or_none(result.least, result.most)}"
    yield f"  largest size in {format_size(result.into):18}{in_words(result.size) if result.size else 'none fits'}"
    yield f"  largest window in {format_size(result.into):16}{_window(result.window)}"
    yield f"{'budget':>12}{'s/it':>9}{'s/frame':>9}{'peak GiB':>10}"
    for budget, outcome in result.curve:
        yield f"{format_size(budget):>12}{_figures(outcome)}  {outcome.text.partition(';')[0]}"
    worst = max(result.watched.owners, key=lambda peak: peak.num_bytes, default=None)
    if worst is not None:
        yield f"alive at the worst moment, in {worst.phase}: {worst.num_bytes / _MIB:.1f} MiB of tensors"
        for owner in worst.owners[:_NUM_OWNERS]:
            yield f"{owner.num_bytes / _MIB:10.1f} MiB  {owner.count} x {owner.what}  {owner.name}"


def ceiling_rows(result: Ceilings, *, gate: Gate, settings: Mapping[str, Setting]) -> list[BenchRow]:
    """Rows of ceilings, curve and owners; ``settings`` are those beside the job's own."""
    job, size = result.job, result.size
    shared: dict[str, Any] = {
        "dtype": activation_dtype(job.precision, job.device),
        "precision": job.precision,
        "basis": result.basis,
        "gate": gate,
        "settings": {
            "model": job.model,
            "device": job.device,
            "size": in_words(job.size),
            "window": job.window,
            "steps": job.num_steps,
            "attention": job.attention,
            "emulated": job.emulated,
            "curve": result.watched.source,
            **settings,
        },
    }
    area = (
        [] if size is None else [("vram-largest-size", format_size(result.into), "px", [size[0] * size[1]])]
    )
    return make_rows(_quantities(result), **shared) + make_rows(area, shape=size, **shared)


def _quantities(result: Ceilings) -> Iterator[tuple[str, str, str, list[float]]]:
    """Case, variant, unit and value of everything that was found but the largest size."""
    if result.least is not None:
        yield "vram-least-budget", "finishes", "B", [result.least]
    if result.window is not None:
        yield "vram-largest-window", format_size(result.into), "latent frames", [result.window]
    for limit, outcome in result.curve:
        if outcome.step is not None and outcome.frame is not None:
            yield "vram-curve-step", format_size(limit), "s/it", [outcome.step]
            yield "vram-curve-frame", format_size(limit), "s/frame", [outcome.frame]
            yield "vram-curve-peak", format_size(limit), "B", [outcome.peak]
    for peak in result.watched.owners:
        yield "vram-live-tensors", peak.phase, "B", [peak.num_bytes]
        for owner in peak.owners[:_NUM_OWNERS]:
            name = f"{owner.count} x {owner.what}, {owner.name}"
            yield f"vram-owner-{peak.phase}", name, "B", [owner.num_bytes]


def write_ceilings_page(path: str | os.PathLike[str], result: Ceilings, rows: Sequence[BenchRow]) -> None:
    """Write a page of ceilings, curve and owners as HTML."""
    job, watched = result.job, result.watched
    figures = [("Speed against memory", plot_ceilings(result))]
    if watched.samples:
        limit = result.into if watched.samples[0].device_used is not None else None
        source = f"; device: {watched.source}" if watched.source != "none" else ""
        caption = f"Memory by phase with {format_size(result.into)} ({result.basis}{source})"
        figures.append((caption, plot_timeline(watched.samples, limit)))
    least = "no budget finishes" if result.least is None else f"{format_size(result.least)} are enough"
    write_report(
        path,
        title=f"What fits: {job.model} in {job.precision}, {in_words(job.size)}",
        status="failed" if result.least is None else "passed",
        verdict=f"{least} ({result.basis}); with {format_size(result.into)} the largest size is "
        f"{in_words(result.size) if result.size else 'none'}, the largest window {_window(result.window)}.",
        rows=rows,
        figures=figures,
        tables=[_curve_table(result), *_owner_tables(result)],
    )


def _curve_table(result: Ceilings) -> Table:
    rows = [
        (format_size(budget), *_figures(outcome).split(), result.basis, outcome.text.partition(";")[0])
        for budget, outcome in result.curve
    ]
    header = ("budget", "s/it", "s/frame", "peak GiB", "basis", "how")
    return Table(caption="Budgets", header=header, rows=rows)


def _owner_tables(result: Ceilings) -> Iterator[Table]:
    for peak in result.watched.owners:
        yield Table(
            caption=f"Alive at the worst moment of {peak.phase}: {peak.num_bytes / _MIB:.1f} MiB of tensors",
            header=("made by", "tensors", "MiB"),
            rows=[
                (owner.name, f"{owner.count} x {owner.what}", f"{owner.num_bytes / _MIB:.1f}")
                for owner in peak.owners[:_NUM_OWNERS]
            ],
        )


def _figures(outcome: Outcome) -> str:
    if outcome.step is None or outcome.frame is None:
        return f"{'-':>9}{'-':>9}{'-':>10}"
    return f"{outcome.step:9.4g}{outcome.frame:9.4g}{outcome.peak / _GIB:10.2f}"


def _or_none(num_bytes: int | None, most: int) -> str:
    return f"none up to {format_size(most)}" if num_bytes is None else format_size(num_bytes)


def _window(window: int | None) -> str:
    if window is None:
        return "none fits"
    return f"{window} (the most that was tried)" if window == MAX_WINDOW else str(window)
