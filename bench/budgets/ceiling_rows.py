"""Memory ceilings as rows, as lines on the terminal and as a page."""

import os
from collections.abc import Iterator, Sequence

from ...engine.request.sizes import format_size
from ..records.environment import Environment
from ..records.html_page import Table, write_report
from ..records.rows import BenchRow, Gate, Setting
from .ceiling_plots import plot_ceilings, plot_timeline
from .ceilings import MAX_WINDOW, Outcome, VramResult

_DTYPES = {"fp32": "float32", "fp16": "float16"}
_GIB, _MIB = 2**30, 2**20
_NUM_OWNERS = 8


def describe(result: VramResult) -> Iterator[str]:
    """Ceilings, curve and owners, line by line."""
    job = result.job
    settings = f"{job.model} in {job.precision}, {_size(job.size)}, window {job.window}"
    yield f"{settings}: {result.basis}, {result.num_points} points"
    yield f"  least budget that finishes        {_bytes_or_none(result.least, result.most)}"
    yield f"  largest size in {_bytes(job.budget):18}{_size(result.size) if result.size else 'none fits'}"
    yield f"  largest window in {_bytes(job.budget):16}{_window(result.window)}"
    yield f"{'budget':>12}{'s/it':>9}{'s/frame':>9}{'peak GiB':>10}"
    for budget, outcome in result.curve:
        yield f"{_bytes(budget):>12}{_figures(outcome)}  {outcome.text.partition(';')[0]}"
    worst = max(result.watched.owners, key=lambda peak: peak.num_bytes, default=None)
    if worst is not None:
        yield f"alive at the worst moment, in {worst.phase}: {worst.num_bytes / _MIB:.1f} MiB of tensors"
        for owner in worst.owners[:_NUM_OWNERS]:
            yield f"{owner.num_bytes / _MIB:10.1f} MiB  {owner.count} x {owner.what}  {owner.name}"


def make_rows(
    result: VramResult, *, gate: Gate, environment: Environment, settings: dict[str, Setting]
) -> list[BenchRow]:
    """Rows of ceilings, curve and owners; ``settings`` are those beside the job's own."""
    job = result.job
    shared: dict[str, Setting] = {
        "model": job.model,
        "device": job.device,
        "size": _size(job.size),
        "window": job.window,
        "steps": job.num_steps,
        "attention": job.attention,
        "emulated": job.emulated,
        "curve": result.watched.source,
        **settings,
    }
    return [
        BenchRow(
            case=f"vram-{case}",
            variant=variant,
            shape=shape,
            dtype=_DTYPES.get(job.precision, "bfloat16" if job.device != "cpu" else "float32"),
            precision=job.precision,
            unit=unit,
            values=(float(value),),
            basis=result.basis,
            gate=gate,
            settings=shared,
            environment=environment,
        )
        for case, variant, shape, unit, value in _quantities(result)
    ]


def _quantities(result: VramResult) -> Iterator[tuple[str, str, tuple[int, ...], str, float]]:
    """Case, variant, shape, unit and value of everything that was found."""
    budget = _bytes(result.job.budget)
    if result.least is not None:
        yield "least-budget", "finishes", (), "B", result.least
    if result.size is not None:
        yield "largest-size", budget, result.size, "px", result.size[0] * result.size[1]
    if result.window is not None:
        yield "largest-window", budget, (), "latent frames", result.window
    for limit, outcome in result.curve:
        name = _bytes(limit)
        if outcome.step is not None and outcome.frame is not None and outcome.peak is not None:
            yield "curve-step", name, (), "s/it", outcome.step
            yield "curve-frame", name, (), "s/frame", outcome.frame
            yield "curve-peak", name, (), "B", outcome.peak
    for peak in result.watched.owners:
        yield "live-tensors", peak.phase, (), "B", peak.num_bytes
        for owner in peak.owners[:_NUM_OWNERS]:
            yield (
                f"owner-{peak.phase}",
                f"{owner.count} x {owner.what}, {owner.name}",
                (),
                "B",
                owner.num_bytes,
            )


def write_vram_report(path: str | os.PathLike[str], result: VramResult, rows: Sequence[BenchRow]) -> None:
    """Write the page."""
    job, watched = result.job, result.watched
    figures = [("Speed against memory", plot_ceilings(result))]
    if watched.samples:
        limit = job.budget if watched.samples[0].device_used is not None else None
        source = f"; device: {watched.source}" if watched.source != "none" else ""
        caption = f"Memory by phase with {_bytes(job.budget)} ({result.basis}{source})"
        figures.append((caption, plot_timeline(watched.samples, limit)))
    least = "no budget finishes" if result.least is None else f"{_bytes(result.least)} are enough"
    write_report(
        path,
        title=f"What fits: {job.model} in {job.precision}, {_size(job.size)}",
        status="failed" if result.least is None else "passed",
        verdict=f"{least} ({result.basis}); with {_bytes(job.budget)} the largest size is "
        f"{_size(result.size) if result.size else 'none'}, the largest window {_window(result.window)}.",
        rows=rows,
        figures=figures,
        tables=[_curve_table(result), *_owner_tables(result)],
    )


def _curve_table(result: VramResult) -> Table:
    rows = [
        (_bytes(budget), *_figures(outcome).split(), result.basis, outcome.text.partition(";")[0])
        for budget, outcome in result.curve
    ]
    header = ("budget", "s/it", "s/frame", "peak GiB", "basis", "how")
    return Table(caption="Budgets", header=header, rows=rows)


def _owner_tables(result: VramResult) -> Iterator[Table]:
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
    if outcome.step is None or outcome.frame is None or outcome.peak is None:
        return f"{'-':>9}{'-':>9}{'-':>10}"
    return f"{outcome.step:9.4g}{outcome.frame:9.4g}{outcome.peak / _GIB:10.2f}"


def _bytes(num_bytes: int) -> str:
    return format_size(num_bytes)


def _bytes_or_none(num_bytes: int | None, most: int) -> str:
    return f"none up to {_bytes(most)}" if num_bytes is None else _bytes(num_bytes)


def _size(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _window(window: int | None) -> str:
    if window is None:
        return "none fits"
    return f"{window} (the most that was tried)" if window == MAX_WINDOW else str(window)
