"""A plan as a table for people."""

import io
from collections.abc import Iterator

from rich.console import Console, Group
from rich.table import Table

from .plan import Plan
from .sizes import format_size

_WIDTH = 110


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
    for name in ("phase", "weights", "slots", "activations", "workspace", "context", "total"):
        table.add_column(name, justify="left" if name == "phase" else "right", no_wrap=True)
    table.add_column("", overflow="fold")
    for phase in plan.phases:
        parts = (phase.weights, phase.slots, phase.activations, phase.workspace, phase.context, phase.total)
        table.add_row(phase.name, *(_mebibytes(part) for part in parts), phase.note)
    table.add_row("budget", "", "", "", "", "", _mebibytes(plan.vram), "MiB; phases follow each other")
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
    chunk = "all tokens at once" if plan.token_chunk is None else f"{plan.token_chunk} tokens at a time"
    yield "MLP", chunk
    yield "VAE", "whole pictures" if plan.vae_tile is None else f"tiles of {plan.vae_tile} px"
    yield "RAM", _host(plan)
    step = plan.step
    yield (
        "step",
        f"{step.total:.2f} s predicted: products {step.products:.2f}, attention {step.attention:.2f}, memory "
        f"{step.traffic:.2f}; copies {step.copies:.2f} {'beside them' if step.is_overlapped else 'on top'}",
    )
    yield (
        "frame",
        f"{plan.seconds_per_frame:.2f} s predicted, decoding included; most of it is {plan.bottleneck}",
    )
    yield (
        "video",
        f"{plan.num_frames} frames in {len(plan.sections)} sections: {_minutes(plan.seconds)} predicted, plus "
        "loading and encoding",
    )


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


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
