"""A plan as a table for people."""

import io
from collections.abc import Iterator

from rich.console import Console, Group
from rich.table import Table

from .plan import Plan
from .roofline import StepTime
from .sizes import format_size

_WIDTH = 100


def render(plan: Plan) -> str:
    """``plan`` as text, without colours."""
    console = Console(file=io.StringIO(), width=_WIDTH, force_terminal=False, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(plan_table(plan))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def plan_table(plan: Plan) -> Group:
    """Settings, bytes of every phase, and expectations."""
    return Group(_title(plan), "", _phases(plan), "", _facts(plan))


def _title(plan: Plan) -> str:
    height, width = plan.size
    guess = " (not in the table: a guess)" if plan.card.is_estimate else ""
    return (
        f"{plan.model}, {plan.precision}, {height}x{width} (height x width), window {plan.window}, "
        f"{plan.num_steps} steps, on {plan.card.name}{guess}"
    )


def _phases(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("MiB in phase", no_wrap=True)
    for name in ("weights", "slots", "activations", "workspace", "context", "total"):
        table.add_column(name, justify="right", no_wrap=True)
    for phase in plan.phases:
        parts = (phase.weights, phase.slots, phase.activations, phase.workspace, phase.context, phase.total)
        table.add_row(phase.name, *(_mebibytes(part) for part in parts))
    table.add_row("of", *[""] * 5, str(plan.vram // 2**20))
    return table


def _mebibytes(num_bytes: int) -> str:
    """Rounded up: a table must not promise what does not fit."""
    return f"{-(-num_bytes // 2**20)}" if num_bytes else "-"


def _facts(plan: Plan) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for row in _rows(plan):
        table.add_row(*row)
    return table


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "units", _units(plan)
    if plan.phase("text encode").note:
        yield "text", plan.phase("text encode").note
    chunk = "all tokens at once" if plan.token_chunk is None else f"{plan.token_chunk} tokens at a time"
    yield "MLP", chunk
    yield "VAE", "whole pictures" if plan.vae_tile is None else f"tiles of {plan.vae_tile} px"
    yield "RAM", _host(plan)
    yield "step", _step(plan.step)
    yield (
        "frame",
        f"{_seconds(plan.seconds_per_frame)} predicted, decoding included; most of it is {plan.bottleneck}",
    )
    yield (
        "video",
        f"{plan.num_frames} frames in {len(plan.sections)} sections: {_seconds(plan.seconds)} predicted, plus "
        "loading and encoding",
    )


def _step(step: StepTime) -> str:
    parts = f"products {step.products:.2g}, attention {step.attention:.2g}, memory {step.traffic:.2g}"
    where = "beside them" + (f", {step.exposed:.2g} exposed" if step.exposed >= 0.005 * step.total else "")
    return f"{_seconds(step.total)} predicted: {parts}; copies {step.copies:.2g} {where}"


def _units(plan: Plan) -> str:
    if plan.ring == 0:
        return f"all {plan.num_units} resident"
    streamed = plan.num_units - len(plan.residents)
    between = "kept" if plan.is_arena_kept else "released"
    return (
        f"{plan.num_units}: {len(plan.residents)} resident, {streamed} through a ring of {plan.ring} slots; "
        f"{between} while frames are decoded"
    )


def _host(plan: Plan) -> str:
    tiers = {
        "pinned": "units pinned in RAM",
        "staged": "units in RAM, copies staged",
        "disk": "units on disk",
    }
    return f"{format_size(plan.host.total)} of {format_size(plan.ram)}: {tiers[plan.tier]}"


def _seconds(seconds: float) -> str:
    """With as many digits as a prediction deserves."""
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
