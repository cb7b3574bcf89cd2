"""The page of ``isoframe bench constant --report``."""

import os
from collections.abc import Sequence

from .constant import ConstantResult
from .plots import plot_memory, plot_phase_times, plot_section_times
from .report import describe_environment, make_cards, write_report
from .rows import BenchRow

_VERDICTS = {
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
    from markupsafe import Markup

    longest = max(result.jobs, key=lambda job: job.length)
    # The plots are ours; everything else on the page is escaped.
    figures = [
        ("Time of a section at every length", Markup(plot_section_times(result.jobs))),
        (f"Time of a section by phase, {longest.length:g} s of video", Markup(plot_phase_times(longest))),
        ("Memory by phase", Markup(plot_memory(longest))),
    ]
    status, verdict = _VERDICTS[result.exit_code]
    write_report(
        path,
        title="Does every second of video cost the same?",
        status=status,
        verdict=verdict,
        findings=result.findings,
        figures=figures,
        cards=make_cards([*rows, *others]),
        environment=describe_environment(rows),
        settings=sorted(rows[-1].settings.items()),
    )
