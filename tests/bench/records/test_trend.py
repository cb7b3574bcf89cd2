"""The verdict of equivalence: growth that is shown, growth that is excluded, and noise that hides both."""

import random
from collections.abc import Sequence

import pytest

from isoframe.bench.records.trend import fit_trend, student_t


def noisy(growth: float, deviation: float, num_points: int = 98, seed: int = 0) -> Sequence[float]:
    """Times around 2 s whose last is ``growth`` above the first."""
    draw = random.Random(seed)
    return [
        2 * (1 + growth * index / (num_points - 1) + draw.gauss(0, deviation)) for index in range(num_points)
    ]


@pytest.mark.parametrize(
    ("growth", "deviation", "status"),
    [
        (0.0, 0.01, "passed"),
        (0.02, 0.01, "passed"),
        (0.0, 0.3, "inconclusive"),
        (0.05, 0.01, "inconclusive"),
        (0.2, 0.01, "failed"),
        (-0.2, 0.01, "failed"),
        (0.5, 0.1, "failed"),
    ],
)
def test_verdict_needs_the_whole_interval(growth: float, deviation: float, status: str) -> None:
    assert fit_trend(noisy(growth, deviation), num_sections=98).status == status


def test_a_straight_line_is_found_exactly() -> None:
    trend = fit_trend([10.0, 11.0, 12.0, 13.0, 14.0], num_sections=11)
    assert trend.growth == pytest.approx(10 / 12)
    assert (trend.low, trend.high) == (pytest.approx(10 / 12), pytest.approx(10 / 12))


def test_interval_holds_the_true_growth_in_about_19_of_20_cases() -> None:
    trends = [fit_trend(noisy(0.1, 0.1, seed=seed), num_sections=98) for seed in range(400)]
    # The line is relative to its mean, which is 1.05 times the first value.
    assert 0.92 <= sum(trend.low <= 0.1 / 1.05 <= trend.high for trend in trends) / 400 <= 0.98


def test_a_neighbour_that_wakes_up_halfway_is_no_proof_of_growth() -> None:
    halfway = [2.0] * 49 + [2.3] * 49
    assert fit_trend(halfway, num_sections=98).status == "failed"
    sometimes = [2.3 if index // 12 in (3, 5, 6) else 2.0 for index in range(98)]
    assert fit_trend(sometimes, num_sections=98).status == "inconclusive"


@pytest.mark.parametrize("num_points", [0, 1, 4])
def test_few_points_tell_nothing(num_points: int) -> None:
    trend = fit_trend([1.0] * num_points, num_sections=num_points)
    assert trend.status == "inconclusive"
    assert trend.describe() == f"{num_points} sections are too few to tell"


# Tables of Student's t.
@pytest.mark.parametrize(
    ("degrees", "quantile"), [(3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (96, 1.985)]
)
def test_quantile_is_that_of_the_tables(degrees: int, quantile: float) -> None:
    assert student_t(degrees) == pytest.approx(quantile, rel=0.012 if degrees == 3 else 2e-3)
