"""A plan: what a job holds on the device and on the host in each phase, how long it is expected to take, and its table."""

import dataclasses
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..request.sections import SectionPlan
from ..request.sizes import format_size
from .machine import Card
from .roofline import StepTime

if TYPE_CHECKING:
    # Imported where a table is drawn: the benchmarks on a rented card need torch and Triton alone.
    from rich.console import Group
    from rich.table import Table

Tier = Literal["pinned", "staged", "disk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseBytes:
    """Bytes that a phase holds on the device at its worst moment.

    Attributes:
        name: of the phase.
        weights: that stay for the whole phase.
        slots: through which weights pass.
        activations: tables and activations.
        workspace: of libraries, and what the allocator cannot hand out.
        context: of the driver.
        note: how the phase fits.
    """

    name: str
    weights: int
    slots: int
    activations: int
    workspace: int
    context: int
    note: str = ""

    @property
    def total(self) -> int:
        return self.weights + self.slots + self.activations + self.workspace + self.context


@dataclass(frozen=True, slots=True, kw_only=True)
class HostBytes:
    """Bytes that the engine adds to its process in RAM. On the CPU, VAE and encoders are in the phases.

    Attributes:
        store: weights of all units; none in tier "disk".
        staging: pinned buffers that copies pass through.
        once: weights that a job needs once: all of a small model, one layer at a time of a stored one.
        vae: the VAE's weights, which wait here while they do not compute.
        encoder: the largest encoder that is loaded whole, on its way to the device.
        frames: decoded frames on their way to the file; there are none yet while an encoder is loaded.
        history: latents that wait for later sections, where the length of the video or a schedule makes them many.
        runtime: modules and buffers that torch loads when it first computes.
    """

    store: int
    staging: int
    once: int
    vae: int
    encoder: int
    frames: int
    history: int
    runtime: int

    @property
    def total(self) -> int:
        weights = self.store + self.staging + self.once + self.vae
        return weights + max(self.encoder, self.frames + self.history) + self.runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a job runs inside its budget; ``str(plan)`` is a table.

    Attributes:
        model: name of the model.
        precision: of the units.
        size: (height, width) in pixels.
        window: latent frames of a section.
        num_steps: steps of a section.
        card: what the times are predicted for.
        vram: budget on the device, context included; on the CPU the budget in RAM.
        ram: budget on the host.
        is_cpu: the job computes on the CPU, where both budgets are one.
        sections: in generation order.
        num_more_frames: of the video, besides four for each latent of its sections: 1 is a start image.
        phases: one after the other; each has the whole budget.
        host: bytes in RAM.
        tier: where the units that are copied lie: "pinned" RAM, pageable RAM with pinned "staged" copies, or "disk";
            on the CPU "pinned" are units that are used where they lie.
        num_units: units of the model.
        ring: slots that units pass through; 0 where all are resident.
        residents: units that stay on the device while a section is denoised.
        token_chunk: tokens whose MLP activations exist at a time; None for all.
        vae_tile: edge of the VAE's tiles in pixels; None decodes whole pictures.
        is_arena_kept: slots and residents stay while frames are decoded; else residents are copied again.
        step: seconds of a step by cause.
        decode_seconds: of one section.
        seconds_per_frame: of denoising and decoding.
    """

    model: str
    precision: str
    size: tuple[int, int]
    window: int
    num_steps: int
    card: Card
    vram: int
    ram: int
    is_cpu: bool
    sections: tuple[SectionPlan, ...]
    num_more_frames: int
    phases: tuple[PhaseBytes, ...]
    host: HostBytes
    tier: Tier
    num_units: int
    ring: int
    residents: tuple[int, ...]
    token_chunk: int | None
    vae_tile: int | None
    is_arena_kept: bool
    step: StepTime
    decode_seconds: float
    seconds_per_frame: float

    @property
    def fits(self) -> bool:
        """Whether every phase is inside the budget."""
        if self.is_cpu:
            return self.peak + self.host.total <= self.ram
        return self.peak <= self.vram and self.host.total <= self.ram

    @property
    def peak(self) -> int:
        """Bytes of the largest phase."""
        return max(phase.total for phase in self.phases)

    @property
    def seconds_per_step(self) -> float:
        return self.step.total

    @property
    def num_frames(self) -> int:
        return 4 * self.window * len(self.sections) + self.num_more_frames

    @property
    def seconds(self) -> float:
        """Seconds of all sections; encoding and the first reading of the model come on top."""
        return self.seconds_per_frame * 4 * self.window * len(self.sections)

    @property
    def bottleneck(self) -> str:
        """What takes most of a section's time: "products", "attention", "memory traffic", "copies" or "decode"."""
        step = self.step
        parts = {"copies": step.copies}
        if step.copies <= step.compute:
            parts = {"products": step.products, "attention": step.attention, "memory traffic": step.traffic}
            parts["copies"] = step.exposed
        parts = {name: self.num_steps * seconds for name, seconds in parts.items()}
        parts["decode"] = self.decode_seconds
        return max(parts, key=lambda name: parts[name])

    def phase(self, name: str) -> PhaseBytes:
        """The phase called ``name``."""
        return next(phase for phase in self.phases if phase.name == name)

    def as_dict(self) -> dict[str, Any]:
        """For machines: all fields, sizes in bytes, and what is derived from them; sections as a count."""
        plan = dataclasses.asdict(self)
        for phase, raw in zip(self.phases, plan["phases"], strict=True):
            raw["total"] = phase.total
        plan["host"]["total"] = self.host.total
        plan["sections"] = len(self.sections)
        derived = ("fits", "peak", "seconds_per_step", "num_frames", "seconds", "bottleneck")
        return plan | {name: getattr(self, name) for name in derived}

    def __str__(self) -> str:
        return render(self)


_WIDTH = 100


def render(plan: Plan) -> str:
    """``plan`` as text, without colours."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=_WIDTH, force_terminal=False, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(plan_table(plan))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def plan_table(plan: Plan) -> "Group":
    """Settings, bytes of every phase, and expectations."""
    from rich.console import Group

    return Group(_title(plan), "", _phases(plan), "", _facts(plan))


def _title(plan: Plan) -> str:
    height, width = plan.size
    guess = " (not in the table: a guess)" if plan.card.is_estimate else ""
    return (
        f"{plan.model}, {plan.precision}, {height}x{width} (height x width), window {plan.window}, "
        f"{plan.num_steps} steps, on {plan.card.name}{guess}"
    )


def _phases(plan: Plan) -> "Table":
    from rich.table import Table

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
    """Bytes in MiB, rounded up: a table must not promise what does not fit."""
    return f"{-(-num_bytes // 2**20)}" if num_bytes else "-"


def _facts(plan: Plan) -> "Table":
    from rich.table import Table

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
    """Seconds as text, with as many digits as a prediction deserves."""
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
