"""``isoframe bench constant``: does every second of video cost the same?"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...engine.errors import ConfigError
from ...engine.request.config import EngineConfig, Request, check_choice
from ..records.command_options import ResultFiles, Weights, command, options

if TYPE_CHECKING:
    from ..meters.job_cost import JobCost
    from ..records.rows import BenchRow
    from .claim_rows import ConstantSubject
    from .claims import ConstantResult

_ALL = "1,2,5,15,30,60,120"
# "reference" is wall time against that of reference work.
_CLOCKS: dict[str, Callable[[], float]] = {
    "wall": time.perf_counter, "cpu": time.process_time, "reference": time.perf_counter
}  # fmt: skip
_HEADER = f"{'video':>7}{'sections':>9}{'s/section':>11}{'host MiB':>10}{'device MiB':>11}{'file MB':>9}"
_MARKS = {"passed": "holds", "failed": "FAILS", "inconclusive": "CANNOT BE TOLD"}


_Lengths = Annotated[
    str, typer.Option("--lengths", metavar="SECONDS,...", help="Lengths of video, with commas.")
]
_Counters = Annotated[
    bool, typer.Option("--counters", help="Only count operations and bytes of a section; no timing.")
]
_Repeats = Annotated[
    int,
    typer.Option(
        "--repeats", min=0, help="Repetitions with twice the sections while the time does not pass."
    ),
]
_Clock = Annotated[
    str,
    typer.Option(
        "--clock",
        help="wall; cpu: this process' own time; reference: wall time against that of unchanging work done beside "
        "it, for a machine that changes its speed; auto: reference on the CPU, wall on a graphics card.",
    ),
]
_Others = Annotated[
    list[Path] | None,
    typer.Option("--cards", metavar="FILE", help="Results of other machines for the page; repeatable."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredVideo:
    """The video that is made at several lengths."""

    image: Annotated[str | None, typer.Option("--image", help="Start image (default: the demo's).")] = None
    prompt: Annotated[str | None, typer.Option("--prompt", help="Prompt (default: the demo's).")] = None
    size: options.Size = None
    order: options.Order = "auto"
    steps: options.Steps = 25
    window: options.Window = 9

    def request(self) -> Request:
        """What is asked of the model; its length is replaced."""
        from ...engine.demo import find_example

        example, prompt = find_example(None)
        return Request(
            image=self.image or str(example),
            prompt=prompt if self.prompt is None else self.prompt,
            size=options.parse_size(self.size),
            order=self.order,
            num_steps=self.steps,
            latent_window_size=self.window,
        )


@command(config=("device", "precision", "attention", "vram", "ram"))
def constant(
    job: MeasuredVideo,
    config: EngineConfig,
    output: ResultFiles,
    lengths: _Lengths = _ALL,
    model: options.Model = "demo",
    weights: Weights = "model",
    no_job: options.NoJob = False,
    counters: _Counters = False,
    repeats: _Repeats = 1,
    clock: _Clock = "auto",
    cards: _Others = None,
) -> None:
    """Run one job at several lengths; exit 0 if a second costs the same in all, 1 if not, 3 if noise hides it."""
    check_choice("--clock", clock, ("auto", *_CLOCKS))
    seconds = parse_lengths(lengths)
    # A page that cannot be written is found out before anything is measured.
    output.check()
    others = _read_others(cards or [])
    request = job.request()
    check_choice("--weights", weights, ("model", "random"))
    from .claim_rows import ConstantSubject, constant_rows
    from .claims_page import write_constant_report

    if weights == "random":
        subject = ConstantSubject.draw(model, config)
    else:
        subject = ConstantSubject.open(model, config, has_job_folder=not no_job)
    if counters:
        raise typer.Exit(_count(subject, request))
    if clock == "auto":
        clock = "reference" if subject.device.type == "cpu" else "wall"
    if clock != "wall" and subject.device.type != "cpu":
        raise ConfigError(
            f"--clock {clock} is for work on the CPU, this is on {subject.device}; use --clock wall"
        )
    result = _measure(subject, request, seconds, repeats, clock)
    rows = constant_rows(result, subject, request, clock)
    output.store(rows, lambda path: write_constant_report(path, result, rows, others))
    if output.report is not None:
        typer.echo(f"report: {output.report}")
    raise typer.Exit(result.exit_code)


def parse_lengths(text: str) -> tuple[float, ...]:
    """Seconds from ``"1,2,5"``."""
    try:
        lengths = tuple(float(part) for part in text.split(","))
    except ValueError:
        lengths = ()
    if not lengths or not all(0 < length <= 3600 for length in lengths):
        raise ConfigError(
            f"--lengths must be seconds from 0 to 3600 with commas, such as {_ALL}, got {text!r}"
        )
    return lengths


def _read_others(files: list[Path]) -> "list[BenchRow]":
    """Rows that were measured on other machines, from files of JSON lines."""
    from ..records.rows import read_rows

    return [row for file in files for row in read_rows(file)]


def _count(subject: "ConstantSubject", request: Request) -> int:
    from .claims import count_job, judge_counts

    finding = judge_counts(count_job(subject.render, request))
    typer.echo(f"{finding.claim:14} {_MARKS[finding.status]}: {finding.text}")
    return 0 if finding.status == "passed" else 1


def _measure(
    subject: "ConstantSubject", request: Request, lengths: tuple[float, ...], repeats: int, clock: str
) -> "ConstantResult":
    from ..meters.memory_meter import MemoryMeter
    from ..operations.correctness import check_operations
    from ..subjects.reference_work import ReferenceWork
    from .claims import measure_constant

    typer.echo(_HEADER)
    result = measure_constant(
        subject.render,
        request,
        gate=check_operations(subject.device),
        meter=MemoryMeter(subject.device),
        lengths=lengths,
        num_repeats=repeats,
        clock=_CLOCKS[clock],
        reference_work=ReferenceWork() if clock == "reference" else None,
        tell=lambda job: typer.echo(_line(job)),
    )
    for found in result.findings:
        typer.echo(f"{found.claim:14} {_MARKS[found.status]}: {found.text}")
    return result


def _line(job: "JobCost") -> str:
    times = [section.total for section in job.sections]
    device = "-" if job.peak_allocated is None else f"{job.peak_allocated / 2**20:.1f}"
    return (
        f"{job.length:5g} s{len(times):9d}{statistics.median(times):11.3f}{job.peak_rss / 2**20:10.1f}"
        f"{device:>11}{job.file_bytes / 1e6:9.2f}"
    )
