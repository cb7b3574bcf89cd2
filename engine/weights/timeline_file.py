"""A timeline as a file: a trace for a browser, or a chart."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..files import make_folder, writing
from .unit_timeline import UnitTiming, chrome_trace, exposed_wait, last_passes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SUFFIXES = (".json", ".svg", ".png")
# More than two steps of 80 units cannot be told apart by eye.
_CHARTED_PASSES = 2
# Colour-blind safe (Okabe and Ito).
_COPY, _COPIED, _RESIDENT, _WAIT = "#0072B2", "#009E73", "#999999", "#D55E00"
_COPY_LANE, _COMPUTE_LANE, _ROW = 1.0, 0.0, 0.4


def check_timeline_path(path: Path) -> None:
    """Raise :class:`ConfigError` where :func:`write_timeline` could not write ``path``: suffix, or no matplotlib."""
    if path.suffix not in _SUFFIXES:
        raise ConfigError(
            f"a trace must be a .json file (chrome://tracing, ui.perfetto.dev) or a chart as .svg or .png, got {path}"
        )
    if path.suffix != ".json" and importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(f"{path} needs matplotlib: pip install matplotlib, or the extra isoframe[bench]")


def write_timeline(timings: Sequence[UnitTiming], path: Path) -> None:
    """Write all of ``timings`` as a trace (.json), or its last two passes as a chart (.svg, .png).

    Raises:
        ConfigError: another suffix, a chart without matplotlib, or no timings.
        InputError: the file cannot be written.
    """
    check_timeline_path(path)
    if not timings:
        raise ConfigError(
            "there is nothing to trace: no weights were copied since trace(), all are in their place; with less memory "
            "(--vram, --ram) they are streamed"
        )
    make_folder("trace", path.parent)
    with writing(path):
        if path.suffix == ".json":
            path.write_text(chrome_trace(timings), encoding="utf-8")
        else:
            _draw(last_passes(timings, _CHARTED_PASSES), path)


def _draw(timings: Sequence[UnitTiming], path: Path) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    # Any: its stubs list every key as a literal.
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "isoframe", "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(11, 2.6), layout="constrained")
        axes = figure.subplots()
        start = min(timing.wanted for timing in timings)
        _draw_lanes(axes, timings, start)
        total = max(timing.compute_end for timing in timings) - start
        wait = exposed_wait(timings)
        axes.set(
            yticks=[_COPY_LANE + _ROW, _COMPUTE_LANE + _ROW],
            yticklabels=["copies", "compute"],
            xlabel="seconds",
            xlim=(0, total),
            title=f"{len(timings)} uses of units in {total:.3g} s; compute waits {wait:.3g} s ({wait / total:.1%})",
        )
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(left=False)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        metadata: Any = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(path, dpi=150, metadata=metadata)


def _draw_lanes(axes: "Axes", timings: Sequence[UnitTiming], start: float) -> None:
    """Units in two rows by turns: a dual-stream block holds two at once."""
    copies = [
        (timing.unit, timing.copy_start, timing.copy_end)
        for timing in timings
        if timing.copy_start is not None and timing.copy_end is not None
    ]
    copied = {unit for unit, _, _ in copies}
    uses = [(timing.unit, timing.compute_start, timing.compute_end) for timing in timings]
    waits = [
        (timing.unit, timing.wanted, timing.compute_start)
        for timing in timings
        if timing.compute_start > timing.wanted
    ]
    for label, lane, colour, spans in (
        ("copy of a unit", _COPY_LANE, _COPY, copies),
        ("use of a copied unit", _COMPUTE_LANE, _COPIED, [use for use in uses if use[0] in copied]),
        ("use of a resident unit", _COMPUTE_LANE, _RESIDENT, [use for use in uses if use[0] not in copied]),
        ("wait for a unit", _COMPUTE_LANE, _WAIT, waits),
    ):
        for row in (0, 1):
            axes.broken_barh(
                [(begin - start, end - begin) for unit, begin, end in spans if unit % 2 == row],
                (lane + (1 - row) * _ROW, 0.9 * _ROW),
                facecolor=colour,
                edgecolor="white",
                linewidth=0.2,
                label=label if spans and row == 0 else None,
            )
