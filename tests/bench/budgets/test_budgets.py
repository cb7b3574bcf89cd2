"""``bench budgets``: steps of a random model inside budgets, measured on the CPU with a probe that stands in for NVML."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_models import saved_model
from typer.testing import CliRunner

from isoframe.bench.budgets import fresh_point, process_peak
from isoframe.bench.budgets import memory_probe as probe
from isoframe.bench.budgets.memory_probe import run_point, run_steps
from isoframe.bench.budgets.point import MemoryJob, Outcome
from isoframe.bench.budgets.step_budgets import BUDGETS, describe, gate, judge, median_step, resident_step
from isoframe.bench.commands import app
from isoframe.bench.gpu import gpu_run
from isoframe.bench.gpu.gpu_run import GpuRun
from isoframe.bench.gpu.job_stages import run_stages, time_budgets
from isoframe.bench.meters.fresh_process import ProcessError
from isoframe.bench.meters.gpu_timer import Budget
from isoframe.engine.errors import BudgetError
from isoframe.engine.generation.model_lookup import find_model
from isoframe.engine.planning.budget import make_plan
from isoframe.engine.planning.machine import Machine, neutral_card
from isoframe.engine.planning.planned_job import PlannedJob
from isoframe.engine.request.config import SamplingConfig

GIB = 2**30
JOB = MemoryJob(
    work="steps", model="demo", precision="int8", size=(64, 64), num_steps=3, device="cpu", budget=None
)  # fmt: skip
POINT = Outcome(
    status="done", allowed=10 * GIB, planned=9 * GIB, peak=9 * GIB, source="NVML, this process", ring=0,
    num_residents=80, num_units=80, step=2.0, exposed=0.0, attention="sdpa",
)  # fmt: skip
SMALL = replace(
    POINT, budget=6 * GIB, allowed=6 * GIB, planned=6 * GIB, peak=5 * GIB, ring=4, num_residents=30
)


class FakePeak:
    """NVML's stand-in: a figure that the test gives."""

    source = "a test"

    def __init__(self, peak: int) -> None:
        self._peak = peak
        self.num_waits = 0

    def synchronize(self) -> None:
        self.num_waits += 1

    def peak(self) -> int:
        return self._peak


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the shape of 20 units, of which only the configuration is read."""
    folder = tmp_path_factory.mktemp("model")
    saved_model(folder, num_attention_heads=4, num_layers=1, num_single_layers=18, num_refiner_layers=1)
    return str(folder)


def least(model: str) -> int:
    """The smallest budget in which the model's shape can run."""
    job = PlannedJob(
        shapes=find_model(model).shapes, sampling=SamplingConfig(num_sections=1, num_steps=3), size=(64, 64),
        precision="int8", compute_dtype="fp32", has_store=True, is_latents_only=True,
    )  # fmt: skip
    with pytest.raises(BudgetError) as refusal:
        make_plan(job, Machine(vram=1, ram=1, card=neutral_card("CPU"), is_cpu=True))
    return refusal.value.needed


def test_units_of_a_random_model_stream_inside_the_least_budget(model: str) -> None:
    taken, ticks, budget = FakePeak(123), iter(range(100)), least(model)
    job = replace(JOB, model=model, budget=budget)
    point = run_steps(job, lambda _: taken, lambda: float(next(ticks)))
    assert point.is_done
    assert point.ring >= 2
    assert point.num_residents < point.num_units == 20
    assert (point.peak, point.source, point.step) == (123, "a test", 1.0)
    assert point.planned <= point.allowed == budget
    assert 0 <= point.exposed < 1
    assert taken.num_waits == JOB.num_steps


def test_without_a_budget_all_units_are_resident() -> None:
    point = run_steps(JOB, lambda _: FakePeak(0))
    assert (point.ring, point.num_residents) == (0, 8)
    assert point.is_kept


def test_what_does_not_fit_is_a_point_that_says_so() -> None:
    point = run_point(replace(JOB, budget=2**20))
    assert "needs at least" in point.text
    assert not point.is_kept
    assert "needs at least" in describe(point, None)


@pytest.mark.parametrize(
    ("of_process", "of_card", "peak", "source"),
    [
        # 9 of 11 reserved by the allocator, 12 at most.
        ([11, 11], None, 12 + 2, "NVML, this process"),
        ([None], [100, 111], 12 + 2, "NVML, more than before this process"),
        ([None], None, 12 + 512 * 2**20, "allocator and 512 MiB of context"),
    ],
)
def test_the_peak_of_a_process_is_the_allocators_and_what_is_beside_it(
    monkeypatch: pytest.MonkeyPatch,
    of_process: list[int | None],
    of_card: list[int] | None,
    peak: int,
    source: str,
) -> None:
    cards = iter(of_card or ())
    monkeypatch.setattr(process_peak, "process_bytes", lambda _: of_process[-1])
    monkeypatch.setattr(
        process_peak, "read_card", lambda _: SimpleNamespace(used_bytes=next(cards)) if of_card else None
    )
    for name, value in (("synchronize", None), ("memory_reserved", 9), ("max_memory_reserved", 12)):
        monkeypatch.setattr(torch.cuda, name, lambda _, value=value: value)
    taken = process_peak.CudaPeak(torch.device("cuda", 0))
    assert (taken.peak(), taken.source) == (peak, source)


def test_the_first_step_warms_up() -> None:
    assert median_step([100.0, 102.0, 105.0, 107.0]) == 2.0


def test_a_kept_promise_is_green() -> None:
    points = [POINT, replace(SMALL, step=2.09, exposed=0.029)]
    assert judge(points) == []
    assert gate(points).is_green
    assert resident_step(points) == 2.0
    assert describe(points[1], 2.0).split()[-2:] == ["1.045", "2.90%"]


@pytest.mark.parametrize(
    ("change", "is_green", "message"),
    [
        ({"peak": 6 * GIB + 1}, False, "budget 6.00 GiB was exceeded: 6.00 GiB (NVML, this process)"),
        ({"exposed": 0.031}, True, "budget 6.00 GiB: compute waits for weights 3.1% of the time"),
        ({"step": 2.2}, True, "budget 6.00 GiB: a step takes 1.100 of the time with all units resident"),
    ],
)
def test_a_broken_promise_is_named_and_an_exceeded_budget_is_red(
    change: dict[str, float], is_green: bool, message: str
) -> None:
    points = [POINT, replace(SMALL, **change)]  # type: ignore[arg-type]  # by name
    assert any(problem.startswith(message) for problem in judge(points))
    assert gate(points).is_green is is_green


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[MemoryJob]]:
    """Has every process answer with a peak of so many bytes; the jobs that they got."""

    def use(peak: int) -> list[MemoryJob]:
        seen: list[MemoryJob] = []

        def run(module: str, text: str, **_: object) -> dict[str, object]:
            assert module == "budgets.memory_probe"
            seen.append(MemoryJob.from_dict(json.loads(text)))
            budget = seen[-1].budget
            return {
                "status": "done",
                "samples": [],
                "owners": [],
                "budget": budget,
                "allowed": budget or 20 * GIB,
                "peak": peak,
                "step": 1.0,
                "ring": 3 if budget else 0,
            }

        monkeypatch.setattr(fresh_point, "run_module", run)
        return seen

    return use


def test_the_command_measures_every_budget_and_writes_rows(
    tmp_path: Path, measured: Callable[[int], list[MemoryJob]]
) -> None:
    seen = measured(3 * GIB)
    rows = tmp_path / "rows.jsonl"
    result = CliRunner().invoke(app, ["budgets", "--device", "cpu", "--json", str(rows)])
    assert result.exit_code == 0, result.output
    assert [job.budget for job in seen] == [None, 4 * GIB, 6 * GIB, 8 * GIB, 12 * GIB]
    assert "unlimited" in result.stdout
    assert "every budget kept" in result.stdout
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert {row["case"] for row in found} == {
        "budget-step",
        "budget-peak",
        "budget-planned",
        "budget-exposed",
    }
    measured(5 * GIB)
    assert CliRunner().invoke(app, ["budgets", "--device", "cpu", "--budget", "4GiB"]).exit_code == 1


def test_memory_that_runs_out_in_a_step_is_a_red_point(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_out(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand much more")

    monkeypatch.setattr(probe.Denoiser, "sample", run_out)
    point = run_point(JOB)
    assert (point.status, point.text) == ("out of memory", "CUDA out of memory. Tried to allocate 2 GiB")
    assert not gate([POINT, point]).is_green
    assert judge([POINT, point]) == [f"budget unlimited: out of memory while running: {point.text}"]


def test_a_refusal_of_the_planner_is_not_red() -> None:
    assert gate([POINT, Outcome(status="refused", budget=4 * GIB, text="needs at least 5 GiB")]).is_green


def test_a_process_that_fails_costs_only_its_own_point(
    tmp_path: Path, measured: Callable[[int], list[MemoryJob]], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(3 * GIB)
    run = fresh_point.run_module

    def fail_once(module: str, text: str, **_: object) -> dict[str, object]:
        budget = json.loads(text)["budget"]
        if budget == 4 * GIB:
            raise ProcessError("budgets.probe failed with exit code 1: Traceback\nValueError: broken", None)
        if budget == 6 * GIB:
            raise ProcessError("budgets.probe failed with exit code -9: ", 9)
        answer: dict[str, object] = run(module, text)
        return answer

    monkeypatch.setattr(fresh_point, "run_module", fail_once)
    rows = tmp_path / "rows.jsonl"
    result = CliRunner().invoke(app, ["budgets", "--device", "cpu", "--json", str(rows)])
    assert result.exit_code == 1
    assert "4.00 GiB  the process failed: ValueError: broken" in result.stdout
    assert "6.00 GiB  the process was killed by signal 9" in result.stdout
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    assert {row["settings"]["budget"] for row in found} == {None, "8.00 GiB", "12.00 GiB"}
    assert {row["gate"]["is_green"] for row in found} == {False}


def test_what_was_measured_is_written_when_the_rest_is_stopped(
    tmp_path: Path, measured: Callable[[int], list[MemoryJob]], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured(3 * GIB)
    run = fresh_point.run_module

    def stop(module: str, text: str, **_: object) -> dict[str, object]:
        if json.loads(text)["budget"] is not None:
            raise OSError("no process can be started")
        answer: dict[str, object] = run(module, text)
        return answer

    monkeypatch.setattr(fresh_point, "run_module", stop)
    rows = tmp_path / "rows.jsonl"
    assert CliRunner().invoke(app, ["budgets", "--device", "cpu", "--json", str(rows)]).exit_code == 1
    assert len(rows.read_text().splitlines()) == 4


def test_bench_gpu_counts_the_budgets_that_were_exceeded(
    tmp_path: Path, bench: GpuRun, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(job: MemoryJob) -> Outcome:
        return replace(SMALL, budget=job.budget, allowed=job.budget or 80 * GIB, peak=7 * GIB)

    run_stages(bench, {"budgets": lambda run_: time_budgets(run_, run)})
    assert len(bench.wrong) == 2
    assert "budget 4.00 GiB was exceeded" in capsys.readouterr().out
    assert (tmp_path / "budgets.jsonl").is_file()

    def fail(job: MemoryJob) -> Outcome:
        raise ProcessError("budgets.probe failed with exit code -9: ", 9)

    failing = replace(bench, wrong=[])
    run_stages(failing, {"budgets": lambda run_: time_budgets(run_, fail)})
    assert len(failing.wrong) == len(BUDGETS)
    late = replace(bench, budget=Budget(0.0, lambda: 0.0), wrong=[])
    assert (list(time_budgets(late, run)), late.wrong) == ([], [])
    assert gpu_run._RESERVE["budgets"] > 0


def test_a_budget_that_is_measured_is_kept_when_the_next_one_fails(tmp_path: Path, bench: GpuRun) -> None:
    def run(job: MemoryJob) -> Outcome:
        if job.budget is not None:
            raise OSError("no process can be started")
        return replace(SMALL, budget=None, allowed=80 * GIB)

    run_stages(bench, {"budgets": lambda run_: time_budgets(run_, run)})
    assert bench.wrong == ["budgets"]
    assert (tmp_path / "budgets.jsonl").read_text().count("budget-step") == 1


@pytest.fixture
def bench(tmp_path: Path) -> GpuRun:
    from isoframe.bench.records.environment import read_environment

    return GpuRun(
        torch.device("cpu"),
        None,
        Budget(1e6, lambda: 0.0),
        tmp_path,
        read_environment(),  # type: ignore[arg-type]  # unused
    )
