"""The page of ``isoframe bench constant --report``."""

import os
from collections.abc import Mapping, Sequence

from ..records.html_page import machine_results, write_report
from ..records.rows import BenchRow
from ..records.trend import Status
from .claims import ConstantResult
from .plots import plot_memory, plot_phase_times, plot_section_times

_VERDICTS: Mapping[int, tuple[Status, str]] = {
    0: ("passed", "Every second of video costs the same."),
    1: ("failed", "A second of video does not cost the same everywhere."),
    3: ("inconclusive", "The measurement cannot tell: too noisy or too short."),
}


def write_constant_report(
    path: str | os.PathLike[str],
    result: ConstantResult,
    rows: Sequence[BenchRow],
    others: Sequence[BenchRow] = (),
) -> None:
    """Write the page.

    Args:
        path: the HTML file.
        result: the measurement.
        rows: of the measurement.
        others: rows of other machines, for the table of cards.
    """
    longest = max(result.jobs, key=lambda job: job.length)
    status, verdict = _VERDICTS[result.exit_code]
    write_report(
        path,
        title="Does every second of video cost the same?",
        status=status,
        verdict=verdict,
        rows=rows,
        findings=result.findings,
        figures=[
            ("Time of a section at every length", plot_section_times(result.jobs)),
            (f"Time of a section by phase, {longest.length:g} s of video", plot_phase_times(longest)),
            ("Memory by phase", plot_memory(longest)),
        ],
        cards=machine_results([*rows, *others]),
    )
