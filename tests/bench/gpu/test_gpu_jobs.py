"""The later stages of ``bench gpu`` on the CPU with small models: rows, verdicts, and what is left out."""

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_rows import ENVIRONMENT, ROW

from isoframe.bench.budgets.fresh_point import ProcessRunner
from isoframe.bench.budgets.point import MemoryJob, Outcome
from isoframe.bench.gpu import job_stages as gpu_jobs
from isoframe.bench.gpu.gpu_run import GpuRun
from isoframe.bench.gpu.job_stages import (
    find_ceilings,
    judge_constant_cost,
    run_stages,
    summary,
    time_paces,
    time_pipelines,
)
from isoframe.bench.meters.fresh_process import ProcessError
from isoframe.bench.meters.gpu_timer import Budget
from isoframe.bench.pace.step_check import MAX_ERRORS
from isoframe.bench.peers import peer_video as peers_pipeline
from isoframe.bench.peers.in_turn import PeerResult
from isoframe.bench.records.rows import BenchRow, Gate, append_rows, read_rows
from isoframe.engine.errors import IsoframeError


class Run(GpuRun):
    """A run with all the time there is, or none for some stages."""

    __slots__ = ("late",)
    late: tuple[str, ...]

    def __init__(self, folder: Path, *late: str) -> None:
        timer: Any = None
        super().__init__(torch.device("cpu"), timer, Budget(0.0, float), folder, ENVIRONMENT)
        object.__setattr__(self, "late", late)

    def has_time(self, stage: str, what: str) -> bool:
        return stage not in self.late


def measured(stage: Iterator[list[BenchRow]]) -> list[BenchRow]:
    return list(stage)[-1]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "_SIZE": (32, 32), "_PACE_STEPS": 2, "_PACE_SECTIONS": 2, "_CONSTANT_STEPS": 1, "_DEMO_STEPS": 2,
    }.items():  # fmt: skip
        monkeypatch.setattr(gpu_jobs, name, value)


def test_paces_are_measured_where_a_small_step_is_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MAX_ERRORS, "int8", 1e-9)
    run = Run(tmp_path)
    rows = measured(time_paces(run, "demo"))
    assert run.wrong == ["pace int8"]
    assert {row.precision for row in rows} == {"bf16"}
    assert {"pace-step", "pace-copied", "pace-wait"} <= {row.case for row in rows}
    assert "int8: WRONG: not timed" in capsys.readouterr().out


def test_constant_cost_is_judged_by_counters_and_peaks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    rows = measured(judge_constant_cost(run, "demo"))
    printed = capsys.readouterr().out
    assert "constant: counters       passed" in printed
    assert "constant: operations     passed" in printed
    assert len(run.wrong) == printed.count("failed: ")
    assert {row.settings["model_hash"] for row in rows} == {"random"}


def test_pipelines_are_compared_and_leave_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = PeerResult(error=1e-3, diffusers_times=(8.0, 9.0), isoframe_times=(4.0, 4.5))
    monkeypatch.setattr(peers_pipeline, "compare_pipelines", lambda *_, **__: result)
    rows = measured(time_pipelines(Run(tmp_path)))
    assert [(row.variant, row.median) for row in rows] == [
        ("diffusers", 8.5), ("isoframe", 4.25), ("isoframe/diffusers", 0.5)
    ]  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_ceilings_are_those_of_fresh_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[MemoryJob] = []

    def run_process(self: ProcessRunner, job: MemoryJob) -> Outcome:
        tried.append(job)
        if job.budget < 300 * 2**20 * job.window // 9:
            return Outcome(status="out of memory", text="no")
        return Outcome(status="done", text="yes", step=1.0, frame=1.0, peak=7)

    monkeypatch.setattr(ProcessRunner, "run", run_process)
    run = Run(tmp_path)
    rows = measured(find_ceilings(run))
    assert run.wrong == []
    assert next(row.values for row in rows if row.case == "vram-least-budget") == (320 * 2.0**20,)
    assert {row.basis for row in rows} == {"measured"}
    assert {job.model for job in tried} == {"demo"}


def test_no_ceiling_is_sought_with_a_kernel_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    red = Gate(is_green=False, text="FAILED: conv")
    monkeypatch.setattr("isoframe.bench.budgets.card_subject.check_operations", lambda _: red)
    monkeypatch.setattr(ProcessRunner, "run", lambda *_: pytest.fail("it was measured"))
    run = Run(tmp_path)
    assert (list(find_ceilings(run)), run.wrong) == ([], ["vram"])
    assert "vram: WRONG: not measured: FAILED: conv" in capsys.readouterr().out


def failing(error: Exception) -> Any:
    def stage(run: Any) -> Any:
        raise error

    return stage


def test_a_stage_that_cannot_run_is_left_out_and_a_wrong_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = {
        "pace": failing(torch.OutOfMemoryError("no memory")),
        "constant": failing(ModuleNotFoundError("No module named 'av'", name="av")),
        "vram": failing(IsoframeError("the latents differ")),
        "probe": failing(ProcessError("budgets.probe failed with exit code 1: it is broken", None)),
        "child": failing(ProcessError("x failed: ModuleNotFoundError: No module named 'diffusers'", None)),
        "compiler": failing(Exception("TritonError is no RuntimeError")),
        "figures": failing(statistics.StatisticsError("no median")),
        "peers": lambda run: iter([[ROW]]),
        "late": failing(AssertionError("there was no time")),
    }
    run = Run(tmp_path, "late")
    run_stages(run, stages)
    assert run.wrong == ["vram", "probe", "compiler", "figures"]
    assert [row.variant for row in read_rows(tmp_path / "failures.jsonl")] == run.wrong
    assert read_rows(tmp_path / "peers.jsonl") == [ROW]
    assert capsys.readouterr().out.splitlines() == [
        "pace: left out, the GPU has too little memory",
        "constant: left out, pip install av",
        "vram: WRONG: IsoframeError: the latents differ",
        "probe: WRONG: ProcessError: budgets.probe failed with exit code 1: it is broken",
        "child: left out, pip install diffusers",
        "compiler: WRONG: Exception: TritonError is no RuntimeError",
        "figures: WRONG: StatisticsError: no median",
    ]


def row(case: str, variant: str, value: float, is_green: bool = True) -> BenchRow:
    from dataclasses import replace

    gate = Gate(is_green=is_green, text="checked")
    return replace(ROW, case=case, variant=variant, values=(value,), gate=gate)


def test_the_summary_shows_green_figures_and_names_wrong_kernels(tmp_path: Path) -> None:
    append_rows(
        tmp_path / "accuracy.jsonl",
        [row("accuracy-a", "isoframe", 0), row("accuracy-b", "isoframe", 1, False)],
    )
    append_rows(
        tmp_path / "pace.jsonl", [row("pace-step", "demo", 0.5), row("pace-step", "wrong", 0.1, False)]
    )
    lines = list(summary(tmp_path))
    assert lines[0].split(maxsplit=1) == ["checked", "2 kernel shapes, wrong: b"]
    assert lines[1].split() == ["pace-step", "demo", "fp32", "0.5", "s"]
    assert len(lines) == 2
