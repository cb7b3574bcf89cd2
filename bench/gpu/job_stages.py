"""What ``bench gpu`` runs beside kernels and steps: paces, constant cost, ceilings and diffusers' pipeline.

Each stage checks before it times, writes the rows of each point, and is left out where a library, memory or time is
missing: a rented machine has torch and triton, and little else.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from ...engine.families.registry import PUBLISHED_NAME
from ...engine.request.config import EngineConfig, Request
from ..budgets.fresh_point import run_in_process
from ..budgets.point import MemoryJob, Outcome
from ..budgets.step_budgets import BUDGETS, Run, budget_rows, gate, measure_budgets
from ..meters.memory_meter import MemoryMeter
from ..operations.correctness import check_operations
from ..records.rows import BenchRow, append_rows, read_rows
from .gpu_run import GpuRun

_PRECISIONS = ("bf16", "int8")
_SIZE = (640, 608)
_PACE_STEPS, _PACE_SECTIONS = 8, 3
_CONSTANT_STEPS = 2
_SECTION_SECONDS = 1.2
_DEMO_STEPS = 4
_BUDGET_STEPS = 4
_MIB = 2**20


# Gives all its rows so far whenever a point is measured; what is wrong it notes in the run.
Stage = Callable[[GpuRun], Iterator[list[BenchRow]]]


def run_stages(run: GpuRun, stages: Mapping[str, Stage]) -> None:
    """Run every stage, and write its rows as they come."""
    for name, stage in stages.items():
        if run.has_time(name, "the demo model" if name in ("vram", "peers") else "13B shape"):
            num_written = 0
            with run.contained(name):
                for rows in stage(run):
                    append_rows(run.folder / f"{name}.jsonl", rows[num_written:])
                    num_written = len(rows)


def time_paces(run: GpuRun, source: str = PUBLISHED_NAME) -> Iterator[list[BenchRow]]:
    """Sections of random weights, as ``bench step --weights random``."""
    from ..pace.pace_rows import HEADER, line
    from ..pace.step_bench import StepBench
    from ..pace.step_pace import Variant

    bench = StepBench(
        source=source,
        is_random=True,
        size=_SIZE,
        num_steps=_PACE_STEPS,
        num_sections=_PACE_SECTIONS,
        config=EngineConfig(device=str(run.device)),
    )
    print(HEADER, flush=True)
    for precision in _PRECISIONS:
        variant = Variant(precision=precision, attention="auto", step_cache="none")
        with run.contained("pace", precision):
            gate = bench.check(variant)
            if not gate.is_green:
                run.note_wrong("pace", f"pace {precision}", f"not timed: {gate.text}")
                continue
            result = bench.run(variant, gate)
            print("\n".join([line(result), *(f"  {reason}" for reason in result.reasons)]), flush=True)
        yield bench.rows()


def judge_constant_cost(run: GpuRun, source: str = PUBLISHED_NAME) -> Iterator[list[BenchRow]]:
    """Counters, device peaks and times of short jobs with random weights, as ``bench constant --weights random``."""
    from ..constant.claim_rows import ConstantSubject, constant_rows
    from ..constant.claims import measure_constant

    subject = ConstantSubject.draw(source, EngineConfig(device=str(run.device)))
    request = Request(image="", prompt="", size=_SIZE, num_steps=_CONSTANT_STEPS)
    result = measure_constant(
        subject.render,
        request,
        gate=check_operations(run.device),
        meter=MemoryMeter(run.device),
        lengths=tuple(count * _SECTION_SECONDS for count in (3, 10)),
        num_repeats=0,
    )
    yield constant_rows(result, subject, request)
    for finding in result.findings:
        print(f"constant: {finding.claim:14} {finding.status}: {finding.text}", flush=True)
        # Short jobs rarely prove that the time does not grow; only a claim that fails is wrong.
        if finding.status == "failed":
            run.note_wrong("constant", f"constant {finding.claim}", finding.text)


def find_ceilings(run: GpuRun) -> Iterator[list[BenchRow]]:
    """Ceilings and time line of the demo model in fresh processes, as ``bench vram``."""
    from ..budgets.card_subject import CardSubject
    from ..budgets.ceiling_rows import ceiling_rows, describe
    from ..budgets.ceilings import CeilingSearch

    subject = CardSubject(
        model="demo", card=None, device=str(run.device), emulate=None, ram=None, is_predicted=False
    )
    gate = subject.gate()
    if not gate.is_green:
        run.note_wrong("vram", "vram", f"not measured: {gate.text}")
        return
    job = subject.job(
        into=f"{1024 * _MIB}", size=(64, 64), window=9, steps=_DEMO_STEPS, precision=None, attention="auto"
    )
    search = CeilingSearch(subject.runner, job, most=2048 * _MIB, resolution=64 * _MIB)
    result = search.measure(num_budgets=2)
    print("\n".join(describe(result)), flush=True)
    yield ceiling_rows(result, gate=gate, settings=subject.settings())
    if result.least is None:
        run.note_wrong("vram", "vram", "no budget suffices")


def time_pipelines(run: GpuRun) -> Iterator[list[BenchRow]]:
    """A video of the demo model beside diffusers' pipeline, as ``bench peers --what pipeline``."""
    from ..peers.peers_bench import PeersBench

    bench = PeersBench(model="demo", device=run.device, size=(64, 64), steps=_DEMO_STEPS, repeats=3)
    precision = "fp32" if run.device.type == "cpu" else "bf16"
    line, rows = bench.compare_videos(precision, seconds=_SECTION_SECONDS, order="forward")
    print(line, flush=True)
    yield rows


def time_budgets(run: GpuRun, run_job: Run = run_in_process) -> Iterator[list[BenchRow]]:
    """Steps of the 13B model in int8 inside budgets of the device, each in a process of its own, as ``bench budgets``."""
    job = MemoryJob(
        work="steps",
        model=PUBLISHED_NAME,
        precision="int8",
        size=_SIZE,
        num_steps=_BUDGET_STEPS,
        device=str(run.device),
        budget=None,
    )
    jobs = [replace(job, budget=budget) for budget in BUDGETS]
    outcomes: list[Outcome] = []
    for outcome in measure_budgets(
        jobs, partial(print, flush=True), run_job, lambda: run.has_time("budgets", "the 13B model")
    ):
        outcomes.append(outcome)
        yield budget_rows(job, outcomes)
        if outcome.is_wrong:
            run.note_wrong("budgets", f"budget {outcome.budget}", outcome.text)
    print(gate(outcomes).text, flush=True)


# What people ask for first, and what is cheap on a small model.
FIRST_STAGES: dict[str, Stage] = {"pace": time_paces, "budgets": time_budgets}
LAST_STAGES: dict[str, Stage] = {
    "constant": judge_constant_cost,
    "vram": find_ceilings,
    "peers": time_pipelines,
}


_SHOWN = (
    "step-13b-640x608",
    "pace-step",
    "pace-share-of-card",
    "constant-growth",
    "vram-least-budget",
    "peers-video",
)


def summary(folder: Path) -> Iterator[str]:
    """The figures that people ask for first, from the rows in ``folder``, in a short table."""
    rows = [row for path in sorted(folder.glob("*.jsonl")) for row in read_rows(path)]
    checked = [row for row in rows if row.case.startswith("accuracy-")]
    wrong = [row.case.removeprefix("accuracy-") for row in checked if not row.gate.is_green]
    yield f"{'checked':24}{len(checked)} kernel shapes, wrong: {', '.join(wrong) or 'none'}"
    for row in rows:
        if row.case in _SHOWN and row.gate.is_green:
            yield f"{row.case:24}{row.variant:22}{row.precision:12}{row.median:12.4g} {row.unit}"
