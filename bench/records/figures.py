"""Figures of a page as SVG, with the page's own fonts: how they are drawn, and the colours that they share."""

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

# Colour-blind safe (Okabe and Ito), in the order of the phases; then those outside of sections.
PHASE_COLOURS = {
    "pack": "#E69F00",
    "denoise": "#0072B2",
    "decode": "#009E73",
    "encode": "#CC79A7",
    "checkpoint": "#D55E00",
    "rest": "#999999",
    "text": "#F0E442",
    "image": "#56B4E9",
    "prepare": "#666666",
}
MEMORY_CURVES = (
    ("allocated", "allocated (tensors)", "#0072B2"),
    ("reserved", "reserved (allocator)", "#E69F00"),
    ("device_used", "in use on the device (all programs)", "#D55E00"),
)
HOST_COLOUR = "#333333"


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


def phase_patches(phases: Iterable[str]) -> "list[Patch]":
    """A legend's patches for the phases among ``phases`` that have a colour."""
    from matplotlib.patches import Patch

    known = set(phases)
    return [
        Patch(color=colour, alpha=0.4, label=phase)
        for phase, colour in PHASE_COLOURS.items()
        if phase in known
    ]
