"""Whether a quantity grows from section to section: a straight line with its 95 % interval, and a verdict."""

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "inconclusive"]
# Growth over a whole job, as a share of the mean, that counts as none.
MAX_GROWTH = 0.05
# With fewer points the interval says more about the formula than about the data.
_MIN_POINTS = 5
_MAX_CORRELATION = 0.9
_Z = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend:
    """Least-squares line through one value a section.

    Attributes:
        num_points: sections behind it.
        mean: of the values.
        growth: slope times (sections of the job - 1), relative to the mean: what the last section costs more than the
            first.
        low: lower end of its 95 % interval; minus infinity with too few points.
        high: upper end.
    """

    num_points: int
    mean: float
    growth: float
    low: float
    high: float

    @property
    def status(self) -> Status:
        """Passed only if the whole interval is inside the accepted growth: no evidence is no proof."""
        if self.low >= -MAX_GROWTH and self.high <= MAX_GROWTH:
            return "passed"
        return "failed" if self.low > MAX_GROWTH or self.high < -MAX_GROWTH else "inconclusive"

    def describe(self) -> str:
        """Growth and interval in words."""
        if not math.isfinite(self.low):
            return f"{self.num_points} sections are too few to tell"
        return f"growth {self.growth:+.2%} (95 % interval {self.low:+.2%} to {self.high:+.2%}, {self.num_points} sections)"


def fit_trend(values: Sequence[float], *, num_sections: int) -> Trend:
    """The line through ``values``, one a section in order, for a job of ``num_sections``.

    Slope b = Sxy / Sxx, its deviation s / sqrt(Sxx) with s^2 = SSE / (n - 2), its interval by Student's t. Neighbours
    that err together, as when other programs run for a while, count for less: s^2 is multiplied by (1 + r) / (1 - r),
    r the correlation of an error with the next one, if positive.
    """
    num_points = len(values)
    mean = statistics.fmean(values) if values else 0.0
    if num_points < _MIN_POINTS or mean == 0:
        return Trend(num_points=num_points, mean=mean, growth=0.0, low=-math.inf, high=math.inf)
    middle = (num_points - 1) / 2
    sxx = sum((x - middle) ** 2 for x in range(num_points))
    slope = sum((x - middle) * (y - mean) for x, y in enumerate(values)) / sxx
    errors = [y - mean - slope * (x - middle) for x, y in enumerate(values)]
    variance = sum(error**2 for error in errors) / (num_points - 2)
    deviation = math.sqrt(variance * _inflation(errors) / sxx)
    half = student_t(num_points - 2) * deviation
    scale = (num_sections - 1) / mean
    return Trend(
        num_points=num_points,
        mean=mean,
        growth=slope * scale,
        low=(slope - half) * scale,
        high=(slope + half) * scale,
    )


def _inflation(errors: Sequence[float]) -> float:
    """Factor on the variance of the mean of errors that follow each other: (1 + r) / (1 - r) of an AR(1) process."""
    total = sum(error**2 for error in errors)
    if total == 0:
        return 1.0
    correlation = sum(a * b for a, b in itertools.pairwise(errors)) / total
    correlation = min(max(correlation, 0.0), _MAX_CORRELATION)
    return (1 + correlation) / (1 - correlation)


def student_t(degrees: int) -> float:
    """The 97.5 % quantile of Student's t by its expansion around the normal one (Abramowitz and Stegun 26.7.5).

    Good to 1 % from 3 degrees of freedom on.
    """
    z = _Z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, start=1))


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent values and the ends of its 95 % interval by Student's t; without width for one value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, mean, mean
    half = student_t(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half
