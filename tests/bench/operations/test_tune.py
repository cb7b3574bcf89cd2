"""The search for launch settings, with invented times; candidates are compiled for real in test_kernels_aot.py."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from isoframe.bench.commands import app
from isoframe.bench.meters.gpu_timer import Budget, Call
from isoframe.bench.operations.launch_tuning import (
    Trial,
    Tuning,
    neighbours,
    search,
    settings_users,
    write_settings,
)
from isoframe.bench.operations.timed_kernels import KernelCase
from isoframe.engine import DeviceError
from isoframe.kernels import KERNELS, use_settings
from isoframe.kernels.launching import launch as _launch
from isoframe.kernels.launching.launch import Settings, override_settings, record_launches, settings

CPU = torch.device("cpu")
SHIPPED = {"BLOCK_M": 128, "IS_EVEN": 1, "num_warps": 8, "num_stages": 3}


def seconds_of(candidate: Settings) -> float:
    """Fastest at 32 rows, 2 warps and 4 stages."""
    return (
        1.0
        + abs(math.log2(candidate["BLOCK_M"] / 32))
        + abs(math.log2(candidate["num_warps"] / 2))
        + abs(candidate["num_stages"] - 4)
    )


def test_neighbours_change_one_value_by_one_step_and_keep_flags() -> None:
    found = list(neighbours(SHIPPED))
    changes = [{key: value for key, value in one.items() if value != SHIPPED[key]} for one in found]
    assert changes == [
        {"BLOCK_M": 64}, {"BLOCK_M": 256}, {"num_warps": 4}, {"num_warps": 16}, {"num_stages": 2}, {"num_stages": 4},
    ]  # fmt: skip


def test_neighbours_stay_inside_what_a_kernel_can_take() -> None:
    assert list(neighbours({"BLOCK": 1, "num_warps": 1, "num_stages": 1})) == [
        {"BLOCK": 2, "num_warps": 1, "num_stages": 1},
        {"BLOCK": 1, "num_warps": 2, "num_stages": 1},
        {"BLOCK": 1, "num_warps": 1, "num_stages": 2},
    ]


def test_search_descends_to_the_fastest() -> None:
    tuning = search("kernel", SHIPPED, seconds_of, lambda _: True)
    assert tuning.best == {"BLOCK_M": 32, "IS_EVEN": 1, "num_warps": 2, "num_stages": 4}
    assert (tuning.shipped_seconds, tuning.best_seconds) == (6.0, 1.0)


def test_search_measures_nothing_twice_and_nothing_that_fails_the_gates() -> None:
    measured: list[Settings] = []

    def measure(candidate: Settings) -> float:
        measured.append(candidate)
        return seconds_of(candidate)

    tuning = search("kernel", SHIPPED, measure, lambda candidate: candidate["BLOCK_M"] >= 64)
    assert tuning.best["BLOCK_M"] == 64
    assert len(measured) == len({tuple(candidate.items()) for candidate in measured})
    assert all(candidate["BLOCK_M"] >= 64 for candidate in measured)


def test_noise_and_wrong_results_do_not_replace_the_shipped_settings() -> None:
    def measure(candidate: Settings) -> float | None:
        if candidate == SHIPPED:
            return 1.0
        return 0.99 if candidate["num_warps"] == 8 else None

    assert search("kernel", SHIPPED, measure, lambda _: True).best == SHIPPED


def test_shipped_settings_that_cannot_be_measured_are_an_error() -> None:
    with pytest.raises(DeviceError, match="settings of kernel cannot be measured"):
        search("kernel", SHIPPED, lambda _: None, lambda _: True)


def test_every_name_of_settings_has_its_users() -> None:
    users = settings_users(90)
    names = {case.spec.name for _, cases in users.values() for case in cases}
    assert names == set(KERNELS)
    assert {case.spec.name for case in users["int8_linear"][1]} == {"int8_linear", "int8_linear_residual"}
    assert users["gated_residual"][0] == settings("gated_residual", CPU)


class CountingTimer:
    """Runs the calls and takes a second for each."""

    def seconds(self, calls: Sequence[Call], repeats: int, *, is_cold: bool) -> list[float]:
        for i in range(repeats):
            calls[i % len(calls)]()
        return [1.0] * repeats

    def reset_peak(self) -> None: ...

    def peak_bytes(self) -> int:
        return 0


@pytest.fixture
def now() -> list[float]:
    return [0.0]


@pytest.fixture
def trial(now: list[float]) -> Trial:
    spec = KERNELS["gated_residual"]
    cases = [KernelCase(spec=spec, shape=shape) for shape in spec.test_shapes[:2]]
    return Trial("gated_residual", cases, CPU, CountingTimer(), Budget(60, lambda: now[0]))


def test_trial_adds_the_cases_up_while_there_is_time(trial: Trial, now: list[float]) -> None:
    assert trial.seconds({"BLOCK": 512, "num_warps": 4}) == 2.0
    now[0] = 61.0
    assert trial.seconds({"BLOCK": 512, "num_warps": 4}) is None


def test_trial_rejects_other_results(trial: Trial) -> None:
    for expected in trial._expected:
        expected[0].add_(1)
    assert trial.seconds({"BLOCK": 512, "num_warps": 4}) is None


@pytest.fixture
def _own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_launch, "_measured", {})


@pytest.mark.usefixtures("_own_table")
def test_written_settings_are_used_on_their_architecture_alone(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    with record_launches(80):
        shipped = settings("gated_residual", CPU)
    path.write_text(json.dumps({"gated_residual": {"80": {"BLOCK": 256, "num_warps": 2}}, "other": {}}))
    best = {"BLOCK": 512, "num_warps": 1}
    tuning = Tuning(
        name="gated_residual", shipped={}, shipped_seconds=2.0, best=best, best_seconds=1.0, num_tried=3
    )
    write_settings(path, 90, [tuning])
    use_settings(path, 90)
    for arch, expected in ((80, shipped), (90, best), (120, shipped)):
        with record_launches(arch):
            assert settings("gated_residual", CPU) == expected
    assert "other" in json.loads(path.read_text())


@pytest.mark.usefixtures("_own_table")
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"gated": {"90": {"BLOCK": 256, "num_warps": 2}}}, "gated is no kernel of this version"),
        ({"gated_residual": {"90": {"BLOCK": 256}}}, "gated_residual must have BLOCK, num_warps"),
        ({"gated_residual": {"90": {"BLOCK": 100, "num_warps": 2}}}, "BLOCK of gated_residual must be one of 1, 2"),
        ({"gated_residual": {"90": {"BLOCK": 256, "num_warps": 64}}}, "num_warps of gated_residual must be one of"),
        ({"gated_residual": {"90": {"BLOCK": 256, "num_warps": True}}}, "got True"),
        ({"gated_residual": {"90": {"BLOCK": "256", "num_warps": 2}}}, "got '256'"),
        ({"gated_residual": {"90": [256, 2]}}, "gated_residual must have"),
        ({"gated_residual": 90}, "must map names of kernels to compute capabilities"),
        ([], "must map names of kernels to compute capabilities"),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_as_a_whole(tmp_path: Path, table: object, message: str) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=message):
        use_settings(path, 90)
    assert not _launch._measured
    if isinstance(table, dict):
        path.write_text(json.dumps({name: {"80": value} for name, value in table.items()}))
        use_settings(path, 90)


def test_overrides_end_with_their_block() -> None:
    shipped = settings("gated_residual", CPU)
    with override_settings({"gated_residual": {"BLOCK": 1}}):
        assert settings("gated_residual", CPU) == {"BLOCK": 1}
        assert settings("step_change", CPU) != {"BLOCK": 1}
    assert settings("gated_residual", CPU) == shipped


@pytest.mark.parametrize("command", ["gpu", "tune"])
def test_command_without_a_gpu_is_a_clear_error(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(app, [command, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert f"error: bench {command} needs a CUDA device, found none" in result.stderr
