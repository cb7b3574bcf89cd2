"""A plot of paces: seconds of a step of each variant, and what of it is waiting for copies."""

import statistics
from collections.abc import Sequence

from .step_result import StepResult
from .svg import draw, to_svg


def plot_steps(results: Sequence[StepResult]) -> str:
    """One bar a variant, the first on top."""
    with draw(1) as (figure, (axes,)):
        names = [
            f"{result.variant.precision}, {result.attention}, {result.variant.step_cache}"
            for result in results
        ]
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
