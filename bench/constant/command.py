"""``isoframe bench constant``: does every second of video cost the same?"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...engine.interfaces.commands.terminal import options

if TYPE_CHECKING:
    import torch

    from ...engine.request.config import EngineConfig, Request
    from ..meters.job_cost import JobCost
    from ..records.rows import BenchRow
    from .claims import ConstantResult, Render

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
_Weights = Annotated[
    str,
    typer.Option(
        "--weights", help="model, or random: the shape of --model (framepack-13b) without its files."
    ),
]
_Image = Annotated[str | None, typer.Option("--image", help="Start image (default: the demo's).")]
_Prompt = Annotated[str | None, typer.Option("--prompt", help="Prompt (default: the demo's).")]
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
_JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
]
_Report = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write a page with plots (HTML).")
]
_Cards = Annotated[
    list[Path] | None,
    typer.Option("--cards", metavar="FILE", help="Results of other machines for the page; repeatable."),
]


def constant(
    lengths: _Lengths = _ALL,
    model: options.Model = "demo",
    weights: _Weights = "model",
    image: _Image = None,
    prompt: _Prompt = None,
    size: options.Size = None,
    order: options.Order = "auto",
    steps: options.Steps = 25,
    window: options.Window = 9,
    device: options.Device = "auto",
    precision: options.Precision = None,
    attention: options.Attention = "auto",
    vram: options.Vram = None,
    ram: options.Ram = None,
    no_job: options.NoJob = False,
    counters: _Counters = False,
    repeats: _Repeats = 1,
    clock: _Clock = "auto",
    json_file: _JsonFile = None,
    report: _Report = None,
    cards: _Cards = None,
    debug: options.Debug = False,
) -> None:
    """Run one job at several lengths; exit 0 if a second costs the same in all, 1 if not, 3 if noise hides it."""
    from ...engine.errors import ConfigError
    from ...engine.interfaces.commands.terminal.failures import readable_errors
    from ...engine.request.config import EngineConfig, Request, check_choice

    with readable_errors(debug=debug):
        check_choice("--clock", clock, ("auto", *_CLOCKS))
        seconds = parse_lengths(lengths)
        others = _read_others(cards, report)
        example, text = _start(image, prompt)
        request = Request(
            image=example,
            prompt=text,
            size=options.parse_size(size),
            order=order,
            num_steps=steps,
            latent_window_size=window,
        )
        check_choice("--weights", weights, ("model", "random"))
        config = EngineConfig(device=device, precision=precision, attention=attention, vram=vram, ram=ram)
        subject = _Subject.open(model, config, is_random=weights == "random", has_job_folder=not no_job)
        if counters:
            raise typer.Exit(_count(subject, request))
        if clock == "auto":
            clock = "reference" if subject.device.type == "cpu" else "wall"
        if clock != "wall" and subject.device.type != "cpu":
            raise ConfigError(
                f"--clock {clock} is for work on the CPU, this is on {subject.device}; use --clock wall"
            )
        result = _measure(subject, request, seconds, repeats, clock)
        if json_file is not None or report is not None:
            _store(result, _rows(result, subject, request, clock), others, json_file, report)
    raise typer.Exit(result.exit_code)


def parse_lengths(text: str) -> tuple[float, ...]:
    """Seconds from ``"1,2,5"``."""
    from ...engine.errors import ConfigError

    try:
        lengths = tuple(float(part) for part in text.split(","))
    except ValueError:
        lengths = ()
    if not lengths or not all(0 < length <= 3600 for length in lengths):
        raise ConfigError(
            f"--lengths must be seconds from 0 to 3600 with commas, such as {_ALL}, got {text!r}"
        )
    return lengths


def _read_others(cards: list[Path] | None, report: Path | None) -> "list[BenchRow]":
    """Rows of other machines; a page that cannot be written is found out before anything is measured."""
    if report is not None:
        from ..records.html_page import check_report_libraries

        check_report_libraries()
    from ..records.rows import read_rows

    return [row for file in cards or () for row in read_rows(file)]


def _store(
    result: "ConstantResult",
    rows: "list[BenchRow]",
    others: "list[BenchRow]",
    json_file: Path | None,
    report: Path | None,
) -> None:
    from ..records.rows import append_rows

    if json_file is not None:
        append_rows(json_file, rows)
    if report is not None:
        from .claims_page import write_constant_report

        write_constant_report(report, result, rows, others)
        typer.echo(f"report: {report}")


def _start(image: str | None, prompt: str | None) -> tuple[str, str]:
    """Image and prompt; those of the demo where none are given."""
    from ...engine.demo import find_example

    example, text = find_example(None)
    return image or str(example), text if prompt is None else prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What is measured.

    Attributes:
        name: of the model.
        model_hash: of its files; "random" where the weights are.
        device: where it computes.
        config: what it was opened with.
        render: makes a video.
    """

    name: str
    model_hash: str
    device: "torch.device"
    config: "EngineConfig"
    render: "Render"

    @classmethod
    def open(cls, model: str, config: "EngineConfig", *, is_random: bool, has_job_folder: bool) -> "_Subject":
        from ...engine.device import resolve_device
        from ...engine.engine import Engine
        from .claims import JOB_FOLDER

        if is_random:
            from ..subjects.random_job import RandomJob

            device = resolve_device(config.device)
            render = RandomJob(model, config, device).render
            return cls(name=model, model_hash="random", device=device, config=config, render=render)
        engine = Engine.load(model, config=config)
        return cls(
            name=engine.components.name,
            model_hash=engine.model_hash,
            device=engine.device,
            config=config,
            render=lambda job, path, on_event: engine.render(
                job, path, on_event=on_event, job_dir=path.parent / JOB_FOLDER if has_job_folder else None
            ),
        )


def _count(subject: _Subject, request: "Request") -> int:
    from .claims import count_job, judge_counts

    finding = judge_counts(count_job(subject.render, request))
    typer.echo(f"{finding.claim:14} {_MARKS[finding.status]}: {finding.text}")
    return 0 if finding.status == "passed" else 1


def _measure(
    subject: _Subject, request: "Request", lengths: tuple[float, ...], repeats: int, clock: str
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


def _rows(result: "ConstantResult", subject: _Subject, request: "Request", clock: str) -> "list[BenchRow]":
    from .claim_rows import ConstantRows, ConstantSubject

    measured = ConstantSubject(
        model=subject.name,
        model_hash=subject.model_hash,
        device=subject.device.type,
        request=request,
        config=subject.config,
        clock=clock,
    )
    return ConstantRows.of(result, measured).rows()
