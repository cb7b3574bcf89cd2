"""Two files of results side by side."""

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from .environment import Environment
from .rows import BenchRow

TIME_UNITS = ("s", "ms", "us", "s/it", "s/frame", "s/section")
_NUM_RESAMPLES = 2000
# What makes two measurements those of different machines or programs.
_CONDITIONS = ("gpu", "cpu", "num_threads", "driver", "os", "python", "torch", "triton", "commit")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One quantity as two files of results have it."""

    before: BenchRow
    after: BenchRow

    @property
    def red_gates(self) -> list[str]:
        """What is wrong with the results themselves; their figures must then not be compared."""
        sides = (("first", self.before), ("second", self.after))
        return [f"{name} file: {row.gate.text}" for name, row in sides if not row.gate.is_green]

    @property
    def ratio(self) -> float:
        """Median of the second over that of the first; infinite where the first is zero."""
        return _ratio(self.after.median, self.before.median)

    def ratio_interval(self) -> tuple[float, float] | None:
        """95 % bootstrap interval of :attr:`ratio`; None where a side has a single value."""
        if min(len(self.before.values), len(self.after.values)) < 2:
            return None
        return bootstrap_ratio(self.after.values, self.before.values)

    def verdict(self) -> str:
        """The change in words: a speed-up for times, else per cent; neither behind a red gate."""
        if self.red_gates:
            return f"not compared, wrong results ({'; '.join(self.red_gates)})"
        if self.before.unit not in TIME_UNITS:
            return f"{self.ratio - 1:+.1%}{self._in_words(lambda ratio: f'{ratio - 1:+.1%}')}"
        speedup = f"{_ratio(1, self.ratio):.2f}x as fast"
        return speedup + self._in_words(lambda ratio: f"{_ratio(1, ratio):.2f}x", is_reversed=True)

    def _in_words(self, describe: Callable[[float], str], *, is_reversed: bool = False) -> str:
        interval = self.ratio_interval()
        if interval is None:
            return " (single values, no interval)"
        low, high = reversed(interval) if is_reversed else interval
        return f" (95 % {describe(low)} to {describe(high)})"


def compare_rows(before: Sequence[BenchRow], after: Sequence[BenchRow]) -> Iterator[Comparison]:
    """Pairs of the same quantity in the order of ``after``; of repeated rows the last one counts."""
    earlier = {row.key: row for row in before}
    later = {row.key: row for row in after}
    for key, row in later.items():
        if key in earlier:
            yield Comparison(earlier[key], row)


def differing_conditions(before: Environment, after: Environment) -> list[str]:
    """What is not the same around two measurements, in words."""
    pairs = ((name, getattr(before, name), getattr(after, name)) for name in _CONDITIONS)
    return [f"{name}: {old} -> {new}" for name, old, new in pairs if old != new]


def bootstrap_ratio(above: Sequence[float], below: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the ratio of two medians, by resampling both."""
    draw = random.Random(0)
    ratios = sorted(
        _ratio(_resampled_median(draw, above), _resampled_median(draw, below)) for _ in range(_NUM_RESAMPLES)
    )
    return ratios[round(0.025 * _NUM_RESAMPLES)], ratios[round(0.975 * _NUM_RESAMPLES) - 1]


def _ratio(above: float, below: float) -> float:
    if below == 0:
        return 1.0 if above == 0 else float("inf")
    return above / below


def _resampled_median(draw: random.Random, values: Sequence[float]) -> float:
    return statistics.median(draw.choices(values, k=len(values)))
