"""Plots of a constant-cost measurement as SVG, with the page's own fonts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..meters.job_cost import SECTION_PHASES, JobCost, PhaseCost
from ..records.figures import HOST_COLOUR, MEMORY_CURVES, PHASE_COLOURS, draw, phase_patches, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MIB = 2**20
_LENGTH_COLOURS = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08519c", "#08306b", "#041f44", "#000000")
# Sections whose phases can still be told apart by eye.
_MAX_BANDS = 8


def plot_section_times(jobs: Sequence[JobCost]) -> str:
    """Seconds of every section against its place in the job: one curve a length, all at one height."""
    with draw(1) as (figure, (axes,)):
        for index, job in enumerate(jobs):
            times = [section.total for section in job.sections]
            colour = _LENGTH_COLOURS[min(index, len(_LENGTH_COLOURS) - 1)]
            numbers = range(1, len(times) + 1)
            axes.plot(
                numbers, times, ".-", color=colour, markersize=4, linewidth=0.8, label=f"{job.length:g} s"
            )
        _label_sections(axes)
        figure.legend(title="length of the video", ncols=len(jobs), loc="outside upper right")
        return to_svg(figure)


def plot_phase_times(job: JobCost) -> str:
    """Seconds of every section of one job, stacked by phase."""
    with draw(1) as (figure, (axes,)):
        sections = job.sections
        phases = [phase for phase in SECTION_PHASES if any(phase in section.seconds for section in sections)]
        axes.stackplot(
            range(1, len(sections) + 1),
            [[section.seconds.get(phase, 0.0) for section in sections] for phase in phases],
            labels=phases,
            colors=[PHASE_COLOURS[phase] for phase in phases],
            step="mid",
            linewidth=0,
        )
        _label_sections(axes)
        figure.legend(ncols=len(phases), loc="outside upper right")
        return to_svg(figure)


def _label_sections(axes: "Axes") -> None:
    axes.set(xlabel="section, in the order of making", ylabel="seconds a section")
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    axes.margins(x=0.01)


def plot_memory(job: JobCost) -> str:
    """Memory against time: the whole job above, its first sections with their phases below."""
    early = [phase for phase in job.phases if phase.section is None or phase.section < _MAX_BANDS]
    first_end = max(phase.start + phase.seconds for phase in early if phase.section is not None)
    early = [phase for phase in early if phase.start < first_end]
    with draw(2) as (figure, (whole, zoomed)):
        _draw_memory(whole, job.phases)
        _draw_memory(zoomed, early)
        for phase in early:
            colour = PHASE_COLOURS.get(phase.phase, "#ffffff")
            zoomed.axvspan(phase.start, phase.start + phase.seconds, color=colour, alpha=0.25, linewidth=0)
        whole.set(title=f"the whole job, {job.length:g} s of video")
        zoomed.set(xlabel="seconds since the start")
        zoomed.set_title(f"its first {min(_MAX_BANDS, len(job.sections))} sections, coloured by phase")
        lines, labels = whole.get_legend_handles_labels()
        patches = phase_patches(phase.phase for phase in early)
        labels += [str(patch.get_label()) for patch in patches]
        figure.legend([*lines, *patches], labels, ncols=4, loc="outside lower center")
        return to_svg(figure)


def _draw_memory(axes: "Axes", phases: Sequence[PhaseCost]) -> None:
    """The largest resident set of every phase as a step; device figures at the end of each phase."""
    edges = [phases[0].start, *(phase.start + phase.seconds for phase in phases)]
    peaks = [phase.memory.peak_rss / _MIB for phase in phases]
    axes.stairs(peaks, edges, color=HOST_COLOUR, baseline=None, label="host: resident set, peak of a phase")
    for name, label, colour in MEMORY_CURVES:
        values = [getattr(phase.memory, name) for phase in phases]
        if None not in values:
            axes.plot(edges[1:], [value / _MIB for value in values], color=colour, linewidth=1, label=label)
    axes.set(ylabel="MiB")
    axes.set_ylim(0, 1.15 * axes.get_ylim()[1])
