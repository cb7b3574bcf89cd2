"""``bench gpu`` without a GPU: what it measures, what it writes, and that a cut or a fault loses one stage at most."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_rows import ENVIRONMENT

from isoframe.bench.gpu import kernel_stages as gpu
from isoframe.bench.gpu.gpu_run import GpuRun
from isoframe.bench.meters.gpu_timer import Budget, Call, measure
from isoframe.bench.operations.timed_kernels import KernelCase, Work, count_work, gpu_cases, library_calls
from isoframe.bench.pace.step_check import MAX_ERRORS
from isoframe.bench.peers import peer_step as forward
from isoframe.bench.records.environment import read_environment
from isoframe.bench.records.rows import Gate
from isoframe.kernels import KERNELS, KernelSpec

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")
CEILINGS = {"copy": 1e9, "bf16": 1e12, "int8": 2e12}


class FakeTimer:
    """Runs every call and reports times that are set: ``warm`` or ``cold`` seconds, growing by a tenth a repeat."""

    def __init__(self, warm: float = 1e-3, cold: float = 2e-3) -> None:
        self._times = {False: warm, True: cold}
        self.num_calls = 0

    def seconds(self, calls: Sequence[Call], repeats: int, *, is_cold: bool) -> list[float]:
        for i in range(repeats):
            calls[i % len(calls)]()
            self.num_calls += 1
        return [self._times[is_cold] * (1 + i / 10) for i in range(repeats)]

    def reset_peak(self) -> None: ...

    def peak_bytes(self) -> int:
        return 5 * 2**30


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bench(tmp_path: Path, clock: Clock) -> GpuRun:
    # A tenth of a second a call: five repeats.
    timer = FakeTimer(warm=0.1, cold=0.2)
    return GpuRun(CPU, timer, Budget(480, clock), tmp_path / "rows", read_environment())


def small_case(name: str) -> KernelCase:
    return KernelCase(spec=KERNELS[name], shape=KERNELS[name].test_shapes[0])


def rows(bench: GpuRun, name: str) -> list[dict[str, Any]]:
    path = bench.folder / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize(
    ("seconds", "repeats"), [(1e-6, 100), (1e-3, 100), (0.01, 18), (0.5, 5)], ids="{}".format
)
def test_repeats_fill_a_fifth_of_a_second_within_limits(seconds: float, repeats: int) -> None:
    times = measure(FakeTimer(warm=seconds), [lambda: None], is_cold=False)
    assert len(times) == repeats
    assert times[0] == seconds


def test_calls_take_turns() -> None:
    turns: list[int] = []
    calls: list[Callable[[], object]] = [lambda i=i: turns.append(i) for i in range(3)]  # type: ignore[misc]
    measure(FakeTimer(cold=1), calls, is_cold=True)
    # Warm-up, estimate, measurement.
    assert turns == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]


def test_cases_are_all_kernels_that_the_device_supports() -> None:
    assert {case.spec.name for case in gpu_cases(90)} == set(KERNELS)
    assert len(list(gpu_cases(90))) == sum(len(spec.bench_shapes) for spec in KERNELS.values())
    assert not any(case.spec.name.endswith("_fp8") for case in gpu_cases(86))


def test_memory_bound_work_is_bytes_read_and_written() -> None:
    case = KernelCase(spec=KERNELS["gated_residual"], shape=(1, 100, 64))
    work = count_work(case, case.draw(CPU))
    assert work == Work(2.0 * (3 * 100 * 64 + 64), "copy")
    assert work.share(work.amount / 0.5e9, CEILINGS) == pytest.approx(0.5)


def test_matrix_bound_work_is_multiplications_and_additions() -> None:
    spec = KERNELS["int8_linear"]
    case = KernelCase(spec=spec, shape=(2, 17, 40, 75, 0, 0))
    assert count_work(case, case.draw(CPU)) == Work(2.0 * 2 * 17 * 40 * 75, "int8")


def test_arguments_that_are_only_written_are_not_read() -> None:
    case = KernelCase(spec=KERNELS["dequantize_unit"], shape=(64, 96))
    assert count_work(case, case.draw(CPU)).amount == 64 * 96 + 64 * 4 + 64 * 96 * 2


@pytest.mark.parametrize("spec", KERNELS.values(), ids=lambda spec: spec.name)
def test_libraries_run_on_the_inputs_of_the_kernel(spec: KernelSpec) -> None:
    case = KernelCase(spec=spec, shape=spec.test_shapes[-1])
    calls = library_calls(case, case.draw(CPU))
    assert bool(calls) == spec.name.startswith(("int8_linear", "int8_attention", "modulated_layer_norm"))
    for call in calls.values():
        call()


@pytest.mark.parametrize("name", KERNELS)
def test_right_kernel_is_timed_against_reference_and_libraries(bench: GpuRun, name: str) -> None:
    case = small_case(name)
    right = gpu.check_cases(bench, [case])
    assert (right, bench.wrong) == ([case], [])
    gpu.time_cases(bench, right, CEILINGS)
    (accuracy,) = rows(bench, "accuracy")
    assert accuracy["values"] == [0.0]
    times = rows(bench, "times")
    # A reference in fp64 takes minutes on many cards.
    has_reference = not name.startswith(("int8_linear", "int8_attention"))
    assert ("eager reference" in {row["variant"] for row in times}) == has_reference
    warm, cold, share = times[:3]
    # Five repeats, a tenth longer each: the third is the median.
    assert warm["median"] == pytest.approx(0.1 * 1.2)
    assert cold["median"] == pytest.approx(0.2 * 1.2)
    work = count_work(case, case.draw(CPU))
    assert share["case"].endswith(f"-share-of-{work.ceiling}")
    assert share["values"] == pytest.approx([work.amount / (0.2 * 1.2) / CEILINGS[work.ceiling]])


def test_wrong_kernel_is_reported_and_not_timed(bench: GpuRun, capsys: pytest.CaptureFixture[str]) -> None:
    def crash(*args: object) -> None:
        raise RuntimeError("out of resources\nand more")

    right_case = small_case("gated_residual")
    wrong = dataclasses.replace(right_case.spec, op=lambda residual, x, gate: None)
    crashing = dataclasses.replace(right_case.spec, op=crash)
    cases = [
        KernelCase(spec=wrong, shape=(1, 7, 96)),
        KernelCase(spec=crashing, shape=(1, 7, 96)),
        right_case,
    ]
    assert gpu.check_cases(bench, cases) == [right_case]
    assert len(bench.wrong) == 2
    assert [row["values"] for row in rows(bench, "accuracy")] == [[1.0], [1.0], [0.0]]
    printed = capsys.readouterr().out
    assert "FAILED result 0: relative RMS error" in printed
    assert "FAILED RuntimeError: out of resources\n" in printed


def test_nothing_starts_when_the_time_is_up(
    bench: GpuRun, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    clock.now = 475
    case = small_case("gated_residual")
    assert gpu.check_cases(bench, [case]) == []
    gpu.time_cases(bench, [case], CEILINGS)
    gpu.time_compiled(bench, [case])
    gpu.time_steps(bench)
    assert not bench.folder.exists()
    assert capsys.readouterr().out.count("left out, no time: ") == 6


def test_ceilings_are_medians_of_rates(bench: GpuRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "_PRODUCT_SIZE", 64)
    monkeypatch.setattr(gpu, "_COPY_BYTES", 2**10)
    ceilings = gpu.measure_ceilings(bench)
    assert ceilings == pytest.approx(
        {"copy": 2 * 2**10 / 0.12, "bf16": 2 * 64**3 / 0.12, "int8": 2 * 64**3 / 0.12}
    )
    assert [row["unit"] for row in rows(bench, "ceilings")] == ["B/s", "FLOP/s", "OP/s"]


def test_compiled_reference_is_a_baseline_and_its_failure_is_not_ours(
    bench: GpuRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile_or_fail(function: Any, dynamic: bool) -> Any:
        if function is KERNELS["gated_residual"].reference:
            raise RuntimeError("no compiler")
        return function

    monkeypatch.setattr(torch, "compile", compile_or_fail)
    gpu.time_compiled(bench, [small_case("gated_residual"), small_case("modulated_layer_norm")])
    assert [(row["case"], row["variant"]) for row in rows(bench, "compiled")] == [
        ("time-modulated_layer_norm-warm", "torch.compile"),
        ("time-modulated_layer_norm-cold", "torch.compile"),
    ]
    assert "left out, no compiler" in capsys.readouterr().out
    assert bench.wrong == []


@pytest.mark.usefixtures("tiny")
def test_steps_of_both_precisions_and_of_diffusers_are_timed(bench: GpuRun) -> None:
    gpu.time_steps(bench)
    assert bench.wrong == []
    found = [(row["variant"], row["unit"]) for row in rows(bench, "steps")]
    assert found == [
        (variant, unit)
        for variant in ("isoframe bf16", "isoframe int8", "diffusers bf16")
        for unit in ("s", "B")
    ]
    gates = {row["variant"]: row["gate"]["text"] for row in rows(bench, "steps")}
    # The same weights: what differs is rounding alone, or 8-bit arithmetic.
    assert float(gates["diffusers bf16"].split()[-1]) < 0.05
    assert float(gates["isoframe int8"].split()[-1]) < 0.2


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    case = forward.CASES["demo-fp32"]
    monkeypatch.setattr(gpu, "MODEL_13B", case.config)
    monkeypatch.setattr(gpu, "SHAPE_640X608", case.shape)


@pytest.mark.usefixtures("tiny")
def test_a_step_that_is_wrong_on_a_small_model_is_not_timed(
    bench: GpuRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MAX_ERRORS, "int8", 1e-9)
    gpu.time_steps(bench)
    assert bench.wrong == ["step isoframe int8"]
    assert {row["variant"] for row in rows(bench, "steps")} == {"isoframe bf16", "diffusers bf16"}
    assert "step isoframe int8: WRONG: not timed: a step of a small model in int8" in capsys.readouterr().out


@pytest.mark.usefixtures("tiny")
def test_a_step_that_is_far_from_the_first_one_is_not_timed(
    bench: GpuRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpu._MAX_STEP_ERRORS, "diffusers bf16", 1e-9)
    monkeypatch.setattr(gpu, "check_step", lambda *_, **__: Gate(is_green=True, text="checked"))
    gpu.time_steps(bench)
    assert bench.wrong == ["step diffusers bf16"]
    assert {row["variant"] for row in rows(bench, "steps")} == {"isoframe bf16", "isoframe int8"}


class CompilerError(Exception):
    """As Triton's: neither a RuntimeError nor a ValueError."""


@pytest.mark.usefixtures("tiny")
def test_a_fault_costs_its_own_measurement_alone(
    bench: GpuRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise CompilerError("out of resource: shared memory\nRequired: 1")

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: (_ for _ in ()).throw(RuntimeError("sticky")))
    monkeypatch.setattr(gpu, "_PRODUCT_SIZE", 64)
    monkeypatch.setattr(gpu, "_COPY_BYTES", 2**10)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_int_mm", fail)
        ceilings = gpu.measure_ceilings(bench)
    assert set(ceilings) == {"copy", "bf16"}
    assert "ceiling int8: left out, out of resource: shared memory\n" in capsys.readouterr().out

    # Without the ceiling there is no share; a library that fails is left out, and the kernel's own times stay.
    monkeypatch.setattr(gpu, "library_calls", lambda *_: {"a library": fail})
    gpu.time_cases(bench, [small_case("int8_linear")], ceilings)
    assert {(row["variant"], row["unit"]) for row in rows(bench, "times")} == {("isoframe", "s")}
    assert bench.wrong == []

    # A small model's step, the drawing of inputs, and the kernel itself.
    monkeypatch.setattr("isoframe.bench.pace.step_check._step", fail)
    gpu.time_steps(bench)
    assert bench.wrong == ["step isoframe bf16", "step isoframe int8"]
    monkeypatch.setattr(KernelCase, "draw", fail)
    gpu.check_cases(bench, [small_case("gated_residual")])
    gpu.time_cases(bench, [small_case("gated_residual")], ceilings)
    gpu.time_compiled(bench, [small_case("gated_residual")])
    assert [name.split()[0] for name in bench.wrong[2:]] == ["accuracy", "times"]
    assert [row["gate"]["is_green"] for row in rows(bench, "failures")] == [False] * 4


def test_a_whole_run_in_which_everything_fails_ends_with_its_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise CompilerError("no")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("measure", "check_step", "check_case", "_check_variant"):
        monkeypatch.setattr(gpu, name, fail)
    monkeypatch.setattr(gpu, "CudaTimer", FakeTimer)
    monkeypatch.setattr(gpu, "read_environment", lambda: ENVIRONMENT)
    monkeypatch.setattr(gpu, "device_capability", lambda _: 90)
    for stages in (gpu.FIRST_STAGES, gpu.LAST_STAGES):
        for name in stages:
            monkeypatch.setitem(stages, name, fail)
    monkeypatch.setattr(torch, "empty", fail)
    monkeypatch.setattr(torch, "randn", fail)
    assert not gpu.run_gpu_bench(tmp_path / "rows", 8)
    printed = capsys.readouterr().out
    assert {"pace", "budgets", "constant", "vram", "peers"} <= {
        line.split(":")[0] for line in printed.splitlines()
    }
    assert "wrong: " in printed


def test_token_count_of_a_shape_is_that_of_its_step() -> None:
    case = forward.CASES["13b-slice-bf16"]
    assert case.shape.num_tokens == 11 * 80 + 20 + 4 * 6 + 32 + 60


BLOCKED = """
import runpy, sys
for name in ("av", "typer", "diffusers", "rich"):
    sys.modules[name] = None
sys.argv = ["bench", "gpu", "--out", sys.argv[1], "--minutes", "1"]
runpy.run_module("isoframe.bench", run_name="__main__", alter_sys=True)
"""


def test_runs_without_av_typer_and_diffusers_up_to_the_missing_gpu(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / ".src"), "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run(
        [sys.executable, "-P", "-c", BLOCKED, str(tmp_path / "out")],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.stderr == (
        "error: bench gpu needs a CUDA device, found none; bench aot and bench traffic need none\n"
    )
    assert result.returncode == 1
    assert not (tmp_path / "out").exists()
