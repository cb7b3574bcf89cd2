"""``isoframe bench compare``: pairs, intervals, and silence behind a red gate."""

from dataclasses import replace
from pathlib import Path

import pytest
from bench_rows import ENVIRONMENT, ROW
from typer.testing import CliRunner, Result

from isoframe.bench.commands import app
from isoframe.bench.records.comparison import Comparison, compare_rows, differing_conditions
from isoframe.bench.records.rows import BenchRow, Gate, append_rows

STEADY = replace(ROW, values=(2.0, 2.1, 1.9, 2.0, 2.0, 2.05))
FASTER = replace(STEADY, values=tuple(value / 2 for value in STEADY.values))
RED = Gate(is_green=False, text="relative error 3e-1 <= 1e-5")


def compare(folder: Path, before: list[BenchRow], after: list[BenchRow]) -> Result:
    for name, rows in (("a.jsonl", before), ("b.jsonl", after)):
        append_rows(folder / name, rows)
    return CliRunner().invoke(app, ["compare", str(folder / "a.jsonl"), str(folder / "b.jsonl")])


def test_half_the_time_is_twice_as_fast(tmp_path: Path) -> None:
    result = compare(tmp_path, [STEADY], [FASTER])
    assert result.exit_code == 0
    assert "2 -> 1 s  2.00x as fast (95 % 1.9" in result.stdout


@pytest.mark.parametrize("is_first", [True, False])
def test_no_speed_up_is_printed_behind_a_red_gate(tmp_path: Path, is_first: bool) -> None:
    red = replace(STEADY if is_first else FASTER, gate=RED)
    result = compare(tmp_path, [red if is_first else STEADY], [FASTER if is_first else red])
    assert result.exit_code == 1
    assert (
        f"not compared, wrong results ({'first' if is_first else 'second'} file: {RED.text})" in result.stdout
    )
    assert "fast" not in result.stdout
    assert "->" not in result.stdout


def test_interval_holds_the_true_ratio_and_is_wider_for_noise() -> None:
    noisy = replace(STEADY, values=(1.0, 3.0, 2.0, 1.2, 2.8, 2.1))
    low, high = Comparison(STEADY, FASTER).ratio_interval() or (0, 0)
    noisy_low, noisy_high = Comparison(noisy, FASTER).ratio_interval() or (0, 0)
    assert low <= 0.5 <= high
    assert noisy_high - noisy_low > 5 * (high - low)


def test_single_values_have_no_interval() -> None:
    pair = Comparison(replace(ROW, values=(2.0,)), replace(ROW, values=(1.0,)))
    assert pair.ratio_interval() is None
    assert pair.verdict() == "2.00x as fast (single values, no interval)"


def test_what_is_no_time_changes_in_per_cent() -> None:
    pair = Comparison(replace(ROW, unit="MiB", values=(100.0,)), replace(ROW, unit="MiB", values=(110.0,)))
    assert pair.verdict().startswith("+10.0%")


@pytest.mark.parametrize(
    "change",
    [{"case": "x"}, {"variant": "x"}, {"shape": (1,)}, {"precision": "int8"}, {"settings": {"steps": 2}}],
)
def test_other_quantities_are_not_paired(change: dict[str, object]) -> None:
    assert list(compare_rows([ROW], [replace(ROW, **change)])) == []


def test_of_repeated_rows_the_last_one_counts() -> None:
    (pair,) = compare_rows([ROW, STEADY], [ROW, FASTER])
    assert (pair.before, pair.after) == (STEADY, FASTER)


def test_nothing_in_common_is_an_error(tmp_path: Path) -> None:
    result = compare(tmp_path, [ROW], [replace(ROW, case="other")])
    assert result.exit_code == 1
    assert "have no quantity in common" in result.stderr


def test_other_hardware_and_versions_are_named() -> None:
    other = replace(ENVIRONMENT, torch="2.14.0", cpu="another")
    assert differing_conditions(ENVIRONMENT, other) == ["cpu: a cpu -> another", "torch: 2.13.0 -> 2.14.0"]
