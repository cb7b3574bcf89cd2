"""The planner: how a job fits into a budget of device memory and RAM, or what would fit instead."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

from ..errors import BudgetError
from ..model.precision import PRECISIONS
from ..request.sections import plan_sections
from ..request.sizes import format_size
from .host_bytes import choose_host, host_on_disk
from .machine import Machine
from .phases import Arrangement, Phases
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


def _rank(plan: Plan) -> tuple[float, ...]:
    """Least is best: time, then MLP chunks of 4096 tokens, then a ring of 4 where there is room, then copies."""
    if plan.token_chunk is None:
        chunk = 0 if plan.ring == 0 else len(TOKEN_CHUNKS) + 1
    else:
        chunk = 1 + TOKEN_CHUNKS.index(plan.token_chunk)
    num_residents = len(plan.residents)
    wanted = 4 if plan.ring + num_residents >= 8 else 3
    copied = plan.num_steps * (plan.num_units - num_residents) + (0 if plan.is_arena_kept else num_residents)
    # Differences below a microsecond are those of rounding.
    return (round(4 * plan.window * plan.seconds_per_frame, 6), chunk, abs(plan.ring - wanted), copied)


class _Planner:
    """Tries every way to run one job on one machine."""

    def __init__(self, job: PlannedJob, machine: Machine) -> None:
        self._job = job
        self._machine = machine
        self._phases = Phases(job, machine)
        self._sections = tuple(plan_sections(job.sampling))
        self._host, self._tier = choose_host(job, machine)
        self._on_disk = host_on_disk(job, machine)
        self._step_times = cache(self._step_time)
        # On the CPU, frames lie in the same memory as everything else.
        self._room = machine.vram - (self._host.total if machine.is_cpu else 0)

    def plan(self) -> Plan | None:
        """The best plan that fits, or None."""
        plan = min(self._plans(), key=_rank, default=None)
        fits = plan is not None and self._host.total <= self._machine.ram and plan.fits
        return plan if fits else None

    def _plans(self) -> Iterator[Plan]:
        """Every way to run the step loop and the decoder that fits."""
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
                for is_kept, num_slots in ((False, room), (True, min(room, beside_decode))):
                    for ring, residents in self._divisions(num_slots):
                        way = Arrangement(
                            token_chunk=chunk, ring=ring, num_residents=residents, tile=tile, is_arena_kept=is_kept
                        )  # fmt: skip
                        yield self._plan(way, decode)

    def _divisions(self, num_slots: int) -> Iterator[tuple[int, int]]:
        """Ways to divide ``num_slots`` into a ring and residents."""
        units = self._phases.num_units
        if num_slots >= units:
            yield 0, units
            return
        for ring in _RINGS:
            if num_slots >= ring:
                yield ring, num_slots - ring

    def _plan(self, way: Arrangement, decode: float) -> Plan:
        job, machine, phases = self._job, self._machine, self._phases
        window, num_steps = job.sampling.latent_window_size, job.sampling.num_steps
        host, tier = self._host, self._tier
        if way.ring == 0 and way.is_arena_kept:
            # Units that are copied once need no place in RAM; on the CPU, residents are in RAM themselves.
            host, tier = self._on_disk, "pinned" if machine.is_cpu else "disk"
        step = self._step_times(way.num_residents, way.ring)
        # Residents that made room for the decoder come back with the first step.
        first = step if way.is_arena_kept else self._step_times(0, way.ring)
        return Plan(
            model=job.shapes.name,
            precision=job.precision,
            size=job.size,
            window=window,
            num_steps=num_steps,
            card=machine.card,
            vram=machine.vram,
            ram=machine.ram,
            is_cpu=machine.is_cpu,
            sections=self._sections,
            num_more_frames=job.num_more_frames,
            phases=phases.all(way),
            host=host,
            tier=tier,
            num_units=phases.num_units,
            ring=way.ring,
            residents=spread_evenly(phases.num_units, way.num_residents),
            token_chunk=way.token_chunk,
            vae_tile=way.tile,
            is_arena_kept=way.is_arena_kept,
            step=step,
            decode_seconds=decode,
            seconds_per_frame=((num_steps - 1) * step.total + first.total + decode) / (4 * window),
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
    smallest = phases.all(Arrangement(token_chunk=chunk, ring=ring, num_residents=0, tile=tile))
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
