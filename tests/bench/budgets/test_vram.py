"""``isoframe bench vram``: ceilings of a made-up card, of the planner's, and of real processes on the CPU."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from isoframe.bench.budgets import card_subject, fresh_point, planner_answers
from isoframe.bench.budgets.ceiling_rows import ceiling_rows, describe, write_ceilings_page
from isoframe.bench.budgets.ceilings import MAX_WINDOW, CeilingSearch
from isoframe.bench.budgets.fresh_point import ProcessRunner
from isoframe.bench.budgets.memory_probe import cap_device, peak_bytes, run_point
from isoframe.bench.budgets.planner_answers import PlanRunner
from isoframe.bench.budgets.point import MemoryJob, Outcome, as_dict
from isoframe.bench.commands import app
from isoframe.bench.meters.fresh_process import ProcessError, run_module
from isoframe.bench.meters.live_tensors import Owner, PhasePeak
from isoframe.bench.meters.memory_timeline import TimelineSample
from isoframe.bench.records.rows import Basis, Gate, read_rows
from isoframe.engine import BudgetError, CheckpointError, DeviceError, Engine
from isoframe.engine.generation.model_lookup import find_model
from isoframe.engine.planning.budget import make_plan
from isoframe.engine.planning.machine import find_card
from isoframe.engine.planning.plan import Plan

GIB, MIB = 2**30, 2**20
JOB = MemoryJob(model="framepack-13b", device="cuda", budget=6 * GIB, size=(640, 608), precision="int8")
GREEN = Gate(is_green=True, text="operations agree")
PEAK = PhasePeak(
    phase="decode", num_bytes=3 * MIB,
    owners=(Owner(name="engine.vae: VideoVAE.decode", what="fp16 [1, 2]", count=2, num_bytes=2 * MIB),),
)  # fmt: skip


class FakeDevice:
    """A card where a job takes 2 GiB, and 2000 bytes for every pixel and 128 MiB for every latent frame of a window.

    The planner refuses what is clearly too much; a little too much runs out of memory.
    """

    basis: Basis = "emulated"

    def __init__(self) -> None:
        self.asked: list[MemoryJob] = []

    def needed(self, job: MemoryJob) -> int:
        return 2 * GIB + 2000 * job.size[0] * job.size[1] + 128 * MIB * job.window

    def run(self, job: MemoryJob) -> Outcome:
        self.asked.append(job)
        missing = self.needed(job) - job.budget
        if missing > 0:
            status: Any = "refused" if missing > 512 * MIB else "out of memory"
            return Outcome(status=status, text=f"{missing} bytes are missing; buy a card")
        samples = (
            TimelineSample(
                seconds=0.0, phase="denoise", rss=GIB, pinned=MIB, allocated=1, reserved=2, device_used=3, power=50_000
            ),
            TimelineSample(
                seconds=2.0, phase="decode", rss=GIB, pinned=MIB, allocated=2, reserved=3, device_used=4, power=60_000
            ),
        )  # fmt: skip
        return Outcome(
            status="done", text="40 of 80 units resident", step=10 * GIB / job.budget, frame=2.0,
            peak=self.needed(job), source="NVML", samples=samples if job.is_watched else (),
            owners=(PEAK,) if job.is_watched else (),
        )  # fmt: skip


def test_ceilings_of_a_card_are_found_from_both_sides() -> None:
    device = FakeDevice()
    result = CeilingSearch(device, JOB, most=12 * GIB, resolution=128 * MIB).measure()
    needed = device.needed(JOB)
    assert result.least == -(-needed // (128 * MIB)) * 128 * MIB
    tried = {job.budget for job in device.asked}
    assert {result.least, result.least - 128 * MIB} <= tried
    assert result.size is not None
    assert result.size[0] * result.size[1] * 2000 <= 6 * GIB - 2 * GIB - 128 * MIB * 9
    larger = next(job.size for job in device.asked if job.size > result.size)
    assert device.needed(replace(JOB, size=larger)) > JOB.budget
    # 4 GiB less the picture, in steps of 128 MiB.
    assert result.window == (4 * GIB - 2000 * 640 * 608) // (128 * MIB)
    assert (result.basis, result.num_points) == ("emulated", len(device.asked))


def test_no_point_is_tried_twice() -> None:
    device = FakeDevice()
    CeilingSearch(device, JOB, most=12 * GIB).measure([4 * GIB, 6 * GIB, 8 * GIB])
    assert len(set(device.asked)) == len(device.asked) <= 30


def test_the_curve_goes_from_the_least_to_the_most_budget() -> None:
    result = CeilingSearch(FakeDevice(), JOB, most=12 * GIB).measure(num_budgets=5)
    budgets = [budget for budget, _ in result.curve]
    assert (budgets[0], budgets[-1], len(budgets)) == (result.least, 12 * GIB, 5)
    steps = [outcome.step or 0.0 for _, outcome in result.curve]
    assert steps == sorted(steps, reverse=True)


def test_a_card_on_which_nothing_finishes_has_no_ceilings() -> None:
    result = CeilingSearch(FakeDevice(), replace(JOB, budget=GIB), most=2 * GIB).measure()
    assert (result.least, result.size, result.window) == (None, None, None)
    assert result.watched.status == "refused"
    assert "none up to 2.00 GiB" in "\n".join(describe(result))


def test_jobs_and_outcomes_survive_a_trip_through_json() -> None:
    outcome = FakeDevice().run(replace(JOB, is_watched=True))
    assert MemoryJob.from_dict(json.loads(json.dumps(as_dict(JOB)))) == JOB
    assert Outcome.from_dict(json.loads(json.dumps(as_dict(outcome)))) == outcome


def test_rows_carry_the_basis_and_the_page_shows_curve_owners_and_time_line(tmp_path: Path) -> None:
    result = CeilingSearch(FakeDevice(), JOB, most=12 * GIB).measure()
    rows = ceiling_rows(result, gate=GREEN, settings={"card": "RTX 3060"})
    assert {row.basis for row in rows} == {"emulated"}
    by_case = {row.case: row for row in rows}
    assert by_case["vram-least-budget"].values == (float(result.least or 0),)
    assert by_case["vram-largest-size"].shape == result.size
    assert by_case["vram-owner-decode"].variant == "2 x fp16 [1, 2], engine.vae: VideoVAE.decode"
    assert by_case["vram-curve-step"].settings["curve"] == "NVML"
    write_ceilings_page(tmp_path / "out.html", result, rows)
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2
    for text in (
        "(emulated)",
        "in use on the device",
        "page-locked",
        "power, W",
        "engine.vae: VideoVAE.decode",
    ):
        assert text in page


@pytest.fixture(scope="module")
def planner() -> PlanRunner:
    return PlanRunner(find_model("framepack-13b"), find_card("RTX 3060"), 32 * GIB)


def test_the_planners_ceilings_are_those_that_it_refuses_below(planner: PlanRunner) -> None:
    result = CeilingSearch(planner, JOB, most=12 * GIB).measure()
    assert (result.basis, result.watched.source) == ("predicted", "planner")
    assert result.least is not None
    assert GIB < result.least < 4 * GIB
    below = planner.run(replace(JOB, budget=result.least - 256 * MIB))
    assert (below.status, below.step) == ("refused", None)
    assert "needs at least" in below.text
    assert planner.run(replace(JOB, window=(result.window or 0) + 1)).is_done == (result.window == MAX_WINDOW)
    # With more memory fewer units are copied in every step, or fewer tiles are decoded twice.
    frames = [outcome.frame or 0.0 for _, outcome in result.curve]
    assert frames == sorted(frames, reverse=True)


def test_the_predicted_time_line_holds_what_the_plan_holds(
    planner: PlanRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []

    def keep(*args: Any) -> Plan:
        plans.append(make_plan(*args))
        return plans[-1]

    monkeypatch.setattr(planner_answers, "make_plan", keep)
    outcome = planner.run(replace(JOB, is_watched=True))
    (plan,) = plans
    by_phase: dict[str, list[TimelineSample]] = {}
    for sample in outcome.samples:
        by_phase.setdefault(sample.phase, []).append(sample)
    assert list(by_phase) == ["text", "image", "prepare", "denoise", "decode"]
    assert max(sample.device_used or 0 for sample in outcome.samples) == plan.peak == outcome.peak
    denoise = plan.phase("denoise")
    assert by_phase["denoise"][0].allocated == denoise.weights + denoise.slots + denoise.activations
    assert by_phase["denoise"][0].pinned == plan.host.store
    lengths = by_phase["denoise"][1].seconds - by_phase["denoise"][0].seconds
    assert lengths == pytest.approx(JOB.num_steps * plan.seconds_per_step)


def test_predicted_owners_add_up_to_the_plans_tensors(planner: PlanRunner) -> None:
    outcome = planner.run(replace(JOB, is_watched=True))
    (peak,) = outcome.owners
    planned = next(sample for sample in outcome.samples if sample.phase == "denoise").allocated or 0
    assert 0.95 * planned <= peak.num_bytes <= 1.01 * planned
    assert [owner.name for owner in peak.owners[:2]] == [
        "bench.budgets.planner_answers: resident_units", "bench.budgets.planner_answers: ring_slots"
    ]  # fmt: skip
    assert sum(owner.num_bytes for owner in peak.owners) > 0.9 * peak.num_bytes


CPU_JOB = MemoryJob(
    model="demo", device="cpu", budget=400 * MIB, size=(64, 64), window=2, num_steps=2, precision="fp32",
    is_watched=True,
)  # fmt: skip


def test_a_point_runs_in_a_fresh_process_and_tells_what_it_held() -> None:
    outcome = ProcessRunner(is_emulated=False).run(CPU_JOB)
    assert (outcome.status, outcome.text) == ("done", "8 of 8 units resident, VAE tiles none")
    assert outcome.step is not None
    assert outcome.frame is not None
    assert 2 * outcome.step < 8 * outcome.frame
    assert {"denoise", "decode", "encode"} <= {sample.phase for sample in outcome.samples}
    assert max(sample.rss for sample in outcome.samples) == outcome.peak
    assert {"denoise", "decode"} <= {peak.phase for peak in outcome.owners}


def test_a_budget_that_is_too_small_is_refused_by_the_engine_itself() -> None:
    outcome = run_point(replace(CPU_JOB, budget=20 * MIB))
    assert (outcome.status, outcome.step) == ("refused", None)
    assert "--ram" in outcome.text


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nand much more")


def out_of_memory_in_a_phase(*_: Any, **__: Any) -> Any:
    try:
        out_of_memory()
    except torch.OutOfMemoryError as error:
        raise DeviceError("the device has too little memory for phase 'decode'") from error


def out_of_memory_in_a_library(*_: Any, **__: Any) -> Any:
    try:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
    except RuntimeError as error:
        raise DeviceError("the device has too little memory for phase 'denoise'") from error


@pytest.mark.parametrize(
    ("load", "text"),
    [
        (out_of_memory_in_a_library, "the device has too little memory for phase 'denoise'"),
        (out_of_memory, "CUDA out of memory. Tried to allocate 2 GiB"),
        (out_of_memory_in_a_phase, "the device has too little memory for phase 'decode'"),
    ],
)
def test_a_point_that_runs_out_of_memory_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, load: Any, text: str
) -> None:
    monkeypatch.setattr(Engine, "load", load)
    assert run_point(CPU_JOB) == Outcome(status="out of memory", text=text, budget=CPU_JOB.budget)


@pytest.mark.parametrize(
    "error", [CheckpointError("damaged"), DeviceError("attention 'xformers' is missing")]
)
def test_another_failure_is_no_answer(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(Engine, "load", fail)
    with pytest.raises(type(error)):
        run_point(CPU_JOB)


def test_a_process_that_the_system_kills_ran_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: Any, **__: Any) -> Any:
        raise ProcessError("budgets.memory_probe failed with exit code -9: ", 9)

    monkeypatch.setattr(fresh_point, "run_module", kill)
    runner = ProcessRunner(is_emulated=True)
    assert (runner.run(JOB).status, runner.basis) == ("out of memory", "emulated")


def test_a_process_that_fails_tells_why() -> None:
    with pytest.raises(
        ProcessError, match=r"(?s)budgets.memory_probe failed with exit code 1: .*JSONDecodeError"
    ):
        run_module("budgets.memory_probe", "{")


def test_an_emulated_card_caps_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * GIB, 80 * GIB))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda share, _: shares.append(share))
    cap_device(torch.device("cuda", 0), 6 * GIB)
    cap_device(torch.device("cuda", 0), 100 * GIB)
    assert shares == [6 / 80, 1.0]
    monkeypatch.setattr(Engine, "load", lambda *_, **__: (_ for _ in ()).throw(
        BudgetError("too little", needed=2, available=1, option="vram")
    ))  # fmt: skip
    run_point(replace(JOB, emulated=8 * GIB))
    assert shares[-1] == 8 / 80


def test_a_peak_between_two_samples_is_the_allocators() -> None:
    samples = [
        TimelineSample(seconds=0.0, phase="decode", rss=9, pinned=0, reserved=100 * used, device_used=100 * used + 30)
        for used in (1, 4, 2)
    ]  # fmt: skip
    assert peak_bytes(samples, max_reserved=700) == 730
    assert peak_bytes(samples, max_reserved=300) == 430
    assert peak_bytes(samples, None) == 9


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["vram", *map(str, arguments)])


def test_command_predicts_without_a_gpu_and_says_so(tmp_path: Path) -> None:
    rows, page = tmp_path / "rows.jsonl", tmp_path / "page.html"
    result = run(
        "--card", "RTX 3060 Laptop", "--size", "640x608", "--precision", "int8", "--ram", "16GiB", "--into", "5GiB",
        "--json", rows, "--report", page,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("framepack-13b in int8, 640x608, window 9: predicted, ")
    found = {row.case: row for row in read_rows(rows)}
    assert {row.basis for row in found.values()} == {"predicted"}
    assert found["vram-least-budget"].settings["card"] == "RTX 3060 Laptop"
    assert found["vram-least-budget"].gate.text.startswith("nothing ran")
    assert found["vram-largest-window"].variant == "5.00 GiB"
    assert "Predicted, on" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--emulate", "6GiB", "--predict"], "--emulate caps a larger card, and there is none here"),
        (["--card", "RTX 3060", "--into", "20GiB"], "--into must be at most"),
        (["--card", "RTX 9999"], "card must be one of"),
        (["--into", "much"], "--into must be a positive size"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, message in result.stderr) == (2, True), result.output


def test_nothing_is_told_behind_a_red_gate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    red = Gate(is_green=False, text="gated_residual: wrong")
    monkeypatch.setattr(card_subject, "check_operations", lambda device: red)
    result = run("--device", "cpu", "--json", tmp_path / "rows.jsonl")
    assert result.exit_code == 1
    assert result.stdout == "gated_residual: wrong; every point in a fresh process\n"
    assert not (tmp_path / "rows.jsonl").exists()
