"""The planner: how a job fits into a budget of device memory and RAM, or what would fit instead."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ..errors import BudgetError
from ..model.precision import PRECISIONS
from ..request.sections import plan_sections
from ..request.sizes import format_size
from .host_bytes import choose_host, host_on_disk
from .machine import Machine
from .phases import Phases
from .plan import Plan
from .planned_job import PlannedJob
from .ring import spread_evenly
from .roofline import StepTime, decode_seconds, step_time

TOKEN_CHUNKS = (4096, 2048, 1024, 512)
# The published tile is 256 px; smaller ones change the picture a little more.
VAE_TILES = (None, 256, 192, 128)
_RINGS = (4, 3, 2)


def make_plan(job: PlannedJob, machine: Machine) -> Plan:
    """The fastest plan for ``job`` inside the budget of ``machine``.

    Raises:
        BudgetError: nothing fits; it names the nearest settings that do.
    """
    plan = _Planner(job, machine).plan()
    if plan is None:
        raise _refusal(job, machine)
    return plan


def check_fits(job: PlannedJob, machine: Machine) -> None:
    """Raise the :class:`BudgetError` of :func:`make_plan` where nothing fits."""
    if not _fits(job, machine):
        raise _refusal(job, machine)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """One way to run the step loop and the decoder; fields as in a plan.

    Attributes:
        num_residents: units that stay.
        section_seconds: denoising and decoding of a section.
        copied_bytes: weights that a section copies.
    """

    token_chunk: int | None
    ring: int
    num_residents: int
    vae_tile: int | None
    is_arena_kept: bool
    step: StepTime
    decode_seconds: float
    section_seconds: float
    copied_bytes: int

    def rank(self) -> tuple[float, ...]:
        """Least is best: time, then MLP chunks of 4096 tokens, then a ring of 4 where there is room, then copies."""
        if self.token_chunk is None:
            chunk = 0 if self.ring == 0 else len(TOKEN_CHUNKS) + 1
        else:
            chunk = 1 + TOKEN_CHUNKS.index(self.token_chunk)
        wanted = 4 if self.ring + self.num_residents >= 8 else 3
        # Differences below a microsecond are those of rounding.
        return (round(self.section_seconds, 6), chunk, abs(self.ring - wanted), self.copied_bytes)


class _Planner:
    """Tries every way to run one job on one machine."""

    def __init__(self, job: PlannedJob, machine: Machine) -> None:
        self._job = job
        self._machine = machine
        self._phases = Phases(job, machine)
        self._host, self._tier = choose_host(job, machine)
        # On the CPU, frames lie in the same memory as everything else.
        self._room = machine.vram - (self._host.total if machine.is_cpu else 0)

    def plan(self) -> Plan | None:
        """The best plan that fits, or None."""
        choice = min(self._choices(), key=_Choice.rank, default=None)
        if choice is None or self._host.total > self._machine.ram:
            return None
        plan = self._to_plan(choice)
        return plan if plan.fits else None

    def _to_plan(self, choice: _Choice) -> Plan:
        job, machine, window = self._job, self._machine, self._job.sampling.latent_window_size
        host, tier = self._host, self._tier
        if choice.ring == 0 and choice.is_arena_kept:
            # Units that are copied once need no place in RAM; on the CPU, residents are in RAM themselves.
            host, tier = host_on_disk(job, machine), "pinned" if machine.is_cpu else "disk"
        phases = self._phases.all(
            token_chunk=choice.token_chunk,
            num_residents=choice.num_residents,
            ring=choice.ring,
            tile=choice.vae_tile,
            is_arena_kept=choice.is_arena_kept,
        )
        return Plan(
            model=job.shapes.name,
            precision=job.precision,
            size=job.size,
            window=window,
            num_steps=job.sampling.num_steps,
            card=machine.card,
            vram=machine.vram,
            ram=machine.ram,
            is_cpu=machine.is_cpu,
            sections=tuple(plan_sections(job.sampling)),
            num_more_frames=job.num_more_frames,
            phases=phases,
            host=host,
            tier=tier,
            num_units=self._phases.num_units,
            ring=choice.ring,
            residents=spread_evenly(self._phases.num_units, choice.num_residents),
            token_chunk=choice.token_chunk,
            vae_tile=choice.vae_tile,
            is_arena_kept=choice.is_arena_kept,
            step=choice.step,
            decode_seconds=choice.decode_seconds,
            seconds_per_frame=choice.section_seconds / (4 * window),
        )

    def _choices(self) -> Iterator[_Choice]:
        """Every way whose denoising and decoding fit."""
        phases, vram = self._phases, self._room
        total = phases.shape.sequence.total
        chunks = [None, *(chunk for chunk in TOKEN_CHUNKS if chunk < total)]
        rooms = [
            (vram - phases.denoise(chunk, num_residents=0, ring=0).total) // phases.slot for chunk in chunks
        ]
        for tile in _tiles(self._job):
            beside_decode = (vram - phases.decode(tile).total) // phases.slot
            if self._job.is_latents_only:
                beside_decode = max(rooms)
            if beside_decode < 0:
                continue
            window = self._job.sampling.latent_window_size
            decode = decode_seconds(phases.work(tile).decode_flops(2 * window), self._machine.card)
            for chunk, room in zip(chunks, rooms, strict=True):
                for ring, residents in self._divisions(room):
                    yield self._choice(chunk, ring, residents, tile, decode, is_arena_kept=False)
                for ring, residents in self._divisions(min(room, beside_decode)):
                    yield self._choice(chunk, ring, residents, tile, decode, is_arena_kept=True)

    def _divisions(self, num_slots: int) -> Iterator[tuple[int, int]]:
        """Ways to divide ``num_slots`` into a ring and residents."""
        units = self._phases.num_units
        if num_slots >= units:
            yield 0, units
            return
        for ring in _RINGS:
            if num_slots >= ring:
                yield ring, num_slots - ring

    def _choice(
        self,
        token_chunk: int | None,
        ring: int,
        num_residents: int,
        tile: int | None,
        decode: float,
        *,
        is_arena_kept: bool,
    ) -> _Choice:
        units, steps = self._phases.num_units, self._job.sampling.num_steps
        step = self._step_time(num_residents, ring)
        # Residents that made room for the decoder come back with the first step.
        first = step if is_arena_kept else self._step_time(0, ring)
        copied = steps * (units - num_residents) + (0 if is_arena_kept else num_residents)
        return _Choice(
            token_chunk=token_chunk,
            ring=ring,
            num_residents=num_residents,
            vae_tile=tile,
            is_arena_kept=is_arena_kept,
            step=step,
            decode_seconds=decode,
            section_seconds=(steps - 1) * step.total + first.total + decode,
            copied_bytes=copied * self._phases.slot,
        )

    def _step_time(self, num_residents: int, ring: int) -> StepTime:
        shape, num_units = self._phases.shape, self._phases.num_units
        kept = set(spread_evenly(num_units, num_residents))
        pairs = (block.units for block in shape.blocks if len(block.units) > 1)
        return step_time(
            shape,
            self._machine.card,
            copied_bytes=(num_units - num_residents) * self._phases.slot,
            tier=self._tier,
            ring=ring,
            num_pairs=sum(kept.isdisjoint(pair) for pair in pairs),
        )


def _tiles(job: PlannedJob) -> tuple[int | None, ...]:
    if job.tile_choices is not None:
        return job.tile_choices
    if job.vae_tiles is None:
        return VAE_TILES
    return VAE_TILES[1:] if job.vae_tiles else VAE_TILES[:1]


def _refusal(job: PlannedJob, machine: Machine) -> BudgetError:
    """What is missing, and the nearest settings that fit."""
    least = choose_host(job, machine)[0]
    host = least.total
    if host > machine.ram and not machine.is_cpu:
        held = "decoded frames and latents of the history" if least.history else "decoded frames"
        return BudgetError(
            f"staging, VAE, an encoder or {held} take {format_size(host)} of RAM, {format_size(machine.ram)} are "
            f"allowed; use {_memory_option('ram', host)}",
            needed=host,
            available=machine.ram,
            option="ram",
        )
    needed, phase = _least(job, machine)
    option = "ram" if machine.is_cpu else "vram"
    ways = " or ".join([_memory_option(option, needed), *_smaller_jobs(job, machine)])
    return BudgetError(
        f"{job.shapes.name} in {job.precision} at {job.size[0]}x{job.size[1]}{_begun_with(job)} needs at least "
        f"{format_size(needed)} (phase {phase}), {format_size(machine.vram)} are allowed; use {ways}",
        needed=needed,
        available=machine.vram,
        option=option,
    )


def _begun_with(job: PlannedJob) -> str:
    """Why a job that goes on cannot take smaller tiles."""
    if job.tile_choices is None:
        return ""
    (tile,) = job.tile_choices
    kind = "whole pictures" if tile is None else f"VAE tiles of {tile} px"
    return f", begun with {kind} (others would change its pixels),"


def _least(job: PlannedJob, machine: Machine) -> tuple[int, str]:
    """Bytes of the smallest plan, and its largest phase."""
    phases = Phases(job, machine)
    tile = min(_tiles(job), key=lambda tile: phases.decode(tile).total)
    chunk = min((None, *TOKEN_CHUNKS), key=lambda chunk: phases.shape.activation_bytes(chunk))
    ring = min(*_RINGS, phases.num_units)
    smallest = phases.all(token_chunk=chunk, num_residents=0, ring=ring, tile=tile, is_arena_kept=False)
    largest = max(smallest, key=lambda phase: phase.total)
    beside = choose_host(job, machine)[0].total if machine.is_cpu else 0
    return largest.total + beside, largest.name


def _smaller_jobs(job: PlannedJob, machine: Machine) -> Iterator[str]:
    """Options with which the job fits, nearest first: tiles, fewer bits, a smaller picture; a begun one takes none."""
    if job.tile_choices is not None:
        return
    if job.vae_tiles is False and _fits(replace(job, vae_tiles=None), machine):
        yield "--vae-tiles"
    bits = PRECISIONS[job.precision].weight
    fewer = (name for name in ("int8", "nf4") if PRECISIONS[name].weight < bits)
    precision = next((name for name in fewer if _fits(replace(job, precision=name), machine)), None)
    if precision is not None:
        yield f"--precision {precision}"
    size = next((size for size in _smaller_sizes(job.size) if _fits(replace(job, size=size), machine)), None)
    if size is not None:
        yield f"--size {size[0]}x{size[1]}"


def _fits(job: PlannedJob, machine: Machine) -> bool:
    return _Planner(job, machine).plan() is not None


def _smaller_sizes(size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Sizes of about the same shape, multiples of 16 px, largest first."""
    for eighths in range(7, 1, -1):
        height, width = (max(round(edge * eighths / 8 / 16) * 16, 16) for edge in size)
        yield height, width


def _memory_option(name: str, needed: int) -> str:
    """The option with ``needed`` rounded up to 128 MiB."""
    return f"--{name} {-(-needed // 2**27) * 128}MiB"
