"""``isoframe bench constant``: does every second of video cost the same?"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..engine.commands import options

if TYPE_CHECKING:
    from ..engine.config import EngineConfig, Request
    from ..engine.engine import Engine
    from .constant import ConstantResult, Render
    from .rows import BenchRow

_ALL = "1,2,5,15,30,60,120"
_CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
_MARKS = {"passed": "holds", "failed": "FAILS", "inconclusive": "CANNOT BE TOLD"}


def constant(
    lengths: Annotated[
        str, typer.Option("--lengths", metavar="SECONDS,...", help="Lengths of video, with commas.")
    ] = _ALL,
    model: options.Model = "demo",
    image: Annotated[str | None, typer.Option("--image", help="Start image (default: the demo's).")] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Prompt (default: the demo's).")] = None,
    size: options.Size = None,
    order: options.Order = "auto",
    steps: options.Steps = 25,
    window: options.Window = 9,
    device: options.Device = "auto",
    precision: options.Precision = None,
    attention: options.Attention = "auto",
    counters: Annotated[
        bool, typer.Option("--counters", help="Only count operations and bytes of a section; no timing.")
    ] = False,
    repeats: Annotated[
        int,
        typer.Option(
            "--repeats", min=0, help="Repetitions with twice the sections while the time does not pass."
        ),
    ] = 1,
    clock: Annotated[
        str,
        typer.Option("--clock", help="wall, or cpu: this process' own time, for a CPU that others use too."),
    ] = "wall",
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write a page with plots (HTML).")
    ] = None,
    cards: Annotated[
        list[Path] | None,
        typer.Option("--cards", metavar="FILE", help="Results of other machines for the page; repeatable."),
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Run one job at several lengths; exit 0 if a second costs the same in all, 1 if not, 3 if noise hides it."""
    from ..engine.commands.failures import readable_errors
    from ..engine.config import EngineConfig, Request, check_choice
    from ..engine.engine import Engine
    from ..engine.errors import ConfigError

    with readable_errors(debug=debug):
        check_choice("--clock", clock, _CLOCKS)
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
        config = EngineConfig(device=device, precision=precision, attention=attention)
        engine = Engine.load(model, config=config)
        if counters:
            raise typer.Exit(_count(engine, request))
        if clock == "cpu" and engine.device.type != "cpu":
            raise ConfigError(
                f"--clock cpu is for work on the CPU, this is on {engine.device}; use --clock wall"
            )
        result = _measure(engine, request, seconds, repeats, clock)
        if json_file is not None or report is not None:
            _store(result, _rows(result, engine, request, config, clock), others, json_file, report)
    raise typer.Exit(result.exit_code)


def parse_lengths(text: str) -> tuple[float, ...]:
    """Seconds from ``"1,2,5"``."""
    from ..engine.errors import ConfigError

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
        from .report import check_report_libraries

        check_report_libraries()
    from .rows import read_rows

    return [row for file in cards or () for row in read_rows(file)]


def _store(
    result: "ConstantResult",
    rows: "list[BenchRow]",
    others: "list[BenchRow]",
    json_file: Path | None,
    report: Path | None,
) -> None:
    from .rows import append_rows

    if json_file is not None:
        append_rows(json_file, rows)
    if report is not None:
        from .constant_report import write_constant_report

        write_constant_report(report, result, rows, others)
        typer.echo(f"report: {report}")


def _start(image: str | None, prompt: str | None) -> tuple[str, str]:
    """Image and prompt; those of the demo where none are given."""
    from ..engine.commands.demo import find_example

    example, text = find_example(None)
    return image or str(example), text if prompt is None else prompt


def _count(engine: "Engine", request: "Request") -> int:
    from .constant import count_job, judge_counts

    finding = judge_counts(count_job(_renderer(engine), request))
    typer.echo(f"{finding.claim:14} {_MARKS[finding.status]}: {finding.text}")
    return 0 if finding.status == "passed" else 1


def _measure(
    engine: "Engine", request: "Request", lengths: tuple[float, ...], repeats: int, clock: str
) -> "ConstantResult":
    from .constant import measure_constant
    from .correctness import check_operations
    from .memory_meter import MemoryMeter

    result = measure_constant(
        _renderer(engine),
        request,
        gate=check_operations(engine.device),
        meter=MemoryMeter(engine.device),
        lengths=lengths,
        num_repeats=repeats,
        clock=_CLOCKS[clock],
    )
    for line in format_result(result):
        typer.echo(line)
    return result


def _renderer(engine: "Engine") -> "Render":
    return lambda job, path, on_event: engine.render(job, path, on_event=on_event)


def format_result(result: "ConstantResult") -> list[str]:
    """A line for every length and one for every claim."""
    lines = [f"{'video':>7}{'sections':>9}{'s/section':>11}{'host MiB':>10}{'device MiB':>11}{'file MB':>9}"]
    for job in result.jobs:
        times = [section.total for section in job.sections]
        device = "-" if job.peak_allocated is None else f"{job.peak_allocated / 2**20:.1f}"
        lines.append(
            f"{job.length:5g} s{len(times):9d}{statistics.median(times):11.3f}{job.peak_rss / 2**20:10.1f}"
            f"{device:>11}{job.file_bytes / 1e6:9.2f}"
        )
    return lines + [f"{found.claim:14} {_MARKS[found.status]}: {found.text}" for found in result.findings]


def _rows(
    result: "ConstantResult", engine: "Engine", request: "Request", config: "EngineConfig", clock: str
) -> "list[BenchRow]":
    from .constant_rows import ConstantRows
    from .environment import read_environment

    fallback = "fp32" if engine.device.type == "cpu" else "bf16"
    precision = config.precision or fallback
    dtypes = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    return ConstantRows(
        result,
        environment=read_environment(),
        dtype=dtypes.get(precision, dtypes[fallback]),
        precision=precision,
        settings={
            "model": engine.components.name,
            "model_hash": engine.model_hash,
            "device": engine.device.type,
            "size": "auto" if request.size is None else "x".join(map(str, request.size)),
            "order": request.order,
            "steps": request.num_steps,
            "window": request.latent_window_size,
            "attention": config.attention,
            "clock": clock,
        },
    ).rows()
