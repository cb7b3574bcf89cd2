"""Every piece that ``isoframe bench micro`` times runs here once; the command stores what pytest-benchmark measured."""

import importlib.util
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from isoframe.bench.commands import app
from isoframe.bench.operations.micro import micro_cases
from isoframe.bench.operations.micro_suite import test_micro
from isoframe.bench.records.rows import read_rows
from isoframe.kernels import KERNELS

__all__ = ["test_micro"]


def test_every_kernel_and_the_models_step_are_pieces() -> None:
    cases = {case.name: case.group for case in micro_cases(torch.device("cpu"))}
    assert {name for name, group in cases.items() if group == "kernels"} == set(KERNELS)
    assert {"step of the demo's shape", "25 updates of UniPC", "plan of the 13B model"} <= set(cases)


def test_command_times_what_is_chosen_and_stores_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The suite is not one of the workers over which the tests are spread.
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    path = tmp_path / "rows.jsonl"
    result = CliRunner().invoke(app, ["micro", "--only", "UniPC or gated_residual", "--json", str(path)])
    assert result.exit_code == 0, result.output
    rows = {row.variant: row for row in read_rows(path)}
    assert set(rows) == {"gated_residual", "25 updates of UniPC"}
    assert rows["gated_residual"].case == "micro-kernels"
    assert 0 < rows["gated_residual"].median < 1
    assert rows["gated_residual"].settings["rounds"] >= 5


def test_a_missing_library_comes_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pytest_benchmark" else find_spec(name)
    )
    result = CliRunner().invoke(app, ["micro"])
    assert (result.exit_code, "pip install pytest-benchmark" in result.stderr) == (2, True)
