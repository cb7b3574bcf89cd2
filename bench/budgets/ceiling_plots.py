"""Plots of memory ceilings: speed against budget, and memory against time."""

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from ..meters.memory_timeline import TimelineSample
from ..records.figures import HOST_COLOUR, MEMORY_CURVES, PHASE_COLOURS, draw, phase_patches, to_svg
from .ceilings import Ceilings

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GIB, _MIB = 2**30, 2**20
_RED, _BLUE, _GREEN = "#D55E00", "#0072B2", "#009E73"


def plot_ceilings(result: Ceilings) -> str:
    """Seconds of a step against the budget; below the ceiling nothing finishes."""
    with draw(1) as (figure, (axes,)):
        points = [
            (budget / _GIB, outcome.step) for budget, outcome in result.curve if outcome.step is not None
        ]
        axes.plot([x for x, _ in points], [y for _, y in points], "o-", color=_BLUE, label="a step")
        failed = [budget / _GIB for budget, outcome in result.curve if not outcome.is_done]
        if failed:
            axes.plot(failed, [0.0] * len(failed), "x", color=_RED, label="does not finish")
        if result.least is not None:
            axes.axvspan(0, result.least / _GIB, color=_RED, alpha=0.12, linewidth=0)
            label = f"least budget that finishes, {result.least / _GIB:.2f} GiB"
            axes.axvline(result.least / _GIB, color=_RED, linewidth=1, label=label)
        axes.set(xlabel="budget, GiB", ylabel="seconds a step")
        axes.set_xlim(0, 1.05 * result.most / _GIB)
        axes.set_ylim(0, 1.25 * max((y for _, y in points if y is not None), default=1.0))
        figure.legend(ncols=3, loc="outside upper right")
        return to_svg(figure)


def plot_timeline(samples: Sequence[TimelineSample], budget: int | None) -> str:
    """Device above, host below, on one time axis; the background tells the phase."""
    has_device = samples[0].device_used is not None
    with draw(2 if has_device else 1) as (figure, plots):
        if has_device:
            _draw_device(plots[0], samples, budget)
        _draw_host(plots[-1], samples)
        for axes in plots:
            _draw_phases(axes, samples)
            axes.set(ylabel="MiB")
            axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
            axes.margins(x=0)
        plots[-1].set(xlabel="seconds")
        found = [axes.get_legend_handles_labels() for axes in figure.axes]
        patches = phase_patches(sample.phase for sample in samples)
        handles = [handle for handles, _ in found for handle in handles]
        labels = [label for _, labels in found for label in labels]
        labels += [str(patch.get_label()) for patch in patches]
        figure.legend([*handles, *patches], labels, ncols=4, loc="outside lower center")
        return to_svg(figure)


def _draw_device(axes: "Axes", samples: Sequence[TimelineSample], budget: int | None) -> None:
    times = [sample.seconds for sample in samples]
    for name, label, colour in MEMORY_CURVES:
        values = [(getattr(sample, name) or 0) / _MIB for sample in samples]
        axes.plot(times, values, color=colour, linewidth=1, label=label)
    if budget is not None:
        axes.axhline(budget / _MIB, color="#000000", linestyle="--", linewidth=0.8, label="budget")
    watts = [None if sample.power is None else sample.power / 1e3 for sample in samples]
    if any(value is not None for value in watts):
        power = axes.twinx()
        power.plot(times, [value or 0.0 for value in watts], color=_GREEN, linewidth=0.7, label="power, W")
        power.set(ylabel="W")
        power.set_ylim(0)


def _draw_host(axes: "Axes", samples: Sequence[TimelineSample]) -> None:
    times = [sample.seconds for sample in samples]
    curves = (("rss", "host: resident set", HOST_COLOUR), ("pinned", "host: page-locked", "#CC79A7"))
    for name, label, colour in curves:
        axes.plot(times, [getattr(sample, name) / _MIB for sample in samples], color=colour, label=label)


def _draw_phases(axes: "Axes", samples: Sequence[TimelineSample]) -> None:
    """A band from the first sample of a phase to the first of the next."""
    groups = [next(group) for _, group in groupby(samples, key=lambda sample: sample.phase)]
    for first, following in pairwise([*groups, samples[-1]]):
        if first.phase in PHASE_COLOURS:
            axes.axvspan(
                first.seconds, following.seconds, color=PHASE_COLOURS[first.phase], alpha=0.25, linewidth=0
            )
