"""Figures as SVG, with the page's own fonts."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@contextmanager
def draw(num_rows: int) -> "Iterator[tuple[Figure, Sequence[Axes]]]":
    """A figure of ``num_rows`` plots; neither a window system nor global state is touched."""
    import matplotlib
    from matplotlib.figure import Figure

    # Any: its stubs list every key as a literal.
    settings: Any = {
        "svg.fonttype": "none",
        # The same figures give the same file.
        "svg.hashsalt": "isoframe",
        "font.family": "sans-serif",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "legend.frameon": True,
        "legend.fontsize": 8,
        "figure.facecolor": "none",
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(9, 2.9 * num_rows), layout="constrained")
        axes = figure.subplots(num_rows, squeeze=False)[:, 0]
        yield figure, list(axes)


def to_svg(figure: "Figure") -> str:
    """The figure as an element of a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    # Inside HTML there is no room for an XML prologue.
    return svg[svg.index("<svg") :]
