"""A transformer inside its memory budget, from one job's plan to the next, and the limit that the allocator keeps to.

The allocator has one limit for the whole process, so the shares of all open engines add up to it.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import torch

from ...quant import DENSE_DTYPES, WeightFormat
from ..checkpoints.checkpoint import Checkpoint, load_into
from ..checkpoints.destinations import Destination
from ..device import is_out_of_memory
from ..errors import BudgetError
from ..events import OnConversion
from ..families.family import ModelSizes
from ..families.registry import family_of
from ..families.transformer_base import Transformer
from ..model.units import ResidentUnits, Unit, UnitLayout, UnitSource
from ..planning.budget import make_plan
from ..planning.machine import Machine
from ..planning.plan import Plan
from ..planning.planned_job import PlannedJob
from ..request.config import EngineConfig, SamplingConfig
from .conversion import cached_store
from .store import Store, open_store
from .transformer_from_store import open_units, stored_transformer
from .unit_streamer import Streamer
from .unit_timeline import EventLog

_lock = threading.Lock()


class MemoryShare:
    """One engine's part in the limit of its device; nothing on devices other than CUDA.

    The limit is the sum of the shares and of what the process held before the first of them. It is off where an engine
    has lifted it, and where no engine has a share.

    Attributes:
        num_bytes: of the engine; None where it has lifted the limit.
    """

    def __init__(self, device: torch.device) -> None:
        """A share of nothing, until :meth:`set`."""
        self.num_bytes: int | None = 0
        self._device = device

    def set(self, num_bytes: int) -> None:
        """Have ``num_bytes`` of the device; a limit that was lifted stays so."""
        if self._device.type != "cuda":
            return
        with _lock:
            shares = _shares.setdefault(self._device, weakref.WeakSet())
            if not shares:
                _held_before[self._device] = torch.cuda.memory_allocated(self._device)
            shares.add(self)
            if self.num_bytes is not None:
                self.num_bytes = num_bytes
            _apply(self._device)

    def lift(self) -> None:
        """Let others in the process take the whole device, as long as this engine is open."""
        if self._device.type != "cuda":
            return
        with _lock:
            self.num_bytes = None
            _apply(self._device)

    def withdraw(self) -> None:
        """Have no share any more; doing so twice is allowed."""
        if self._device.type != "cuda":
            return
        with _lock:
            _shares.get(self._device, weakref.WeakSet()).discard(self)
            _apply(self._device)


# Of all open engines: the allocator has one limit a device, and the last engine to set it must not starve the others.
_shares: dict[torch.device, weakref.WeakSet[MemoryShare]] = {}
_held_before: dict[torch.device, int] = {}


def _apply(device: torch.device) -> None:
    """Have the allocator give back what it keeps, then fail, rather than take more than the limit."""
    parts = [share.num_bytes for share in _shares.get(device, ())]
    fraction = 1.0
    if parts and None not in parts:
        _, total = torch.cuda.mem_get_info(device)
        num_bytes = _held_before[device] + sum(part for part in parts if part is not None)
        fraction = min(num_bytes / total, 1.0)
    torch.cuda.set_per_process_memory_fraction(fraction, device)


_logger = logging.getLogger(__name__)

T = TypeVar("T")

# What is left of the budget after the device ran out of memory inside it.
_RELIEF = 0.9
# 50 steps of the published model.
_LOGGED_USES = 4000
# Slots of a streamer that has all units resident: it uses none of them.
_UNUSED_RING = 2


class ModelMemory:
    """Places the units of one model as the plan of the job at hand says.

    Attributes:
        transformer: the model.
        units: its blocks' weights, which move between jobs.
        machine: the budget.
        others: bytes that other engines of the process held on the device when this one came.
        limit: the model's share in what the process may take of the device.
        log: of the units' copies and uses; None until :meth:`trace`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | Store,
        shapes: ModelSizes,
        config: EngineConfig,
        weight_format: WeightFormat,
        device: torch.device,
        machine: Machine,
        on_progress: OnConversion | None = None,
        *,
        has_fp32_head: bool = True,
    ) -> None:
        """Load a small model; of a large one make sure that its store is there.

        Args:
            checkpoint: the transformer's files, or its unit store.
            shapes: of the transformer and its companions.
            config: what the engine may use.
            weight_format: of the units.
            device: where it computes.
            machine: the budget.
            on_progress: told of the conversion into a store.
            has_fp32_head: run the output projection of a bf16 job in fp32, as the published program does.
        """
        self.machine = machine
        self.log: EventLog | None = None
        self._checkpoint = checkpoint
        self._shapes = shapes
        self._config = config
        self._format = weight_format
        self._device = device
        self._on_progress = on_progress
        self._has_fp32_head = has_fp32_head and weight_format.dtype == torch.bfloat16
        self._family = family_of(checkpoint.config)
        self._layouts = [UnitLayout(spec, weight_format) for spec in self._family.unit_specs()]
        job = planned_job(shapes, config, weight_format, SamplingConfig(num_sections=1), (16, 16))
        self._is_stored = isinstance(checkpoint, Store) or job.needs_store(machine)
        self._placement: tuple[object, ...] = ()
        self.others = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        self.limit = MemoryShare(device)
        self.set_budget(machine)
        try:
            self.units: UnitSource = UnplacedUnits()
            self.transformer = self._load()
        except BaseException:
            self.limit.withdraw()
            raise

    def set_budget(self, machine: Machine) -> None:
        """Plan the jobs to come inside ``machine``; one at work keeps its plan as long as it can."""
        self.machine = machine
        self.limit.set(machine.vram - machine.context)

    def job(self, sampling: SamplingConfig, size: tuple[int, int]) -> PlannedJob:
        """A job of this model for :meth:`plan`, which the caller may say more of; ``size`` is (height, width) in pixels."""
        job = planned_job(self._shapes, self._config, self._format, sampling, size)
        return replace(job, has_store=self._is_stored)

    def plan(self, job: PlannedJob) -> "JobMemory":
        """Plan a job; nothing moves yet.

        Raises:
            BudgetError: it does not fit; the message names what would.
        """
        return JobMemory(self, job)

    def place(self, plan: Plan) -> UnitSource:
        """Place the units as ``plan`` says; those that are in their place already stay."""
        is_whole = plan.ring == 0 and plan.is_arena_kept and not self._is_stored
        placement = ("whole",) if is_whole else (plan.ring, plan.residents, plan.tier)
        if placement != self._placement:
            # There may not be room for the old and the new place.
            self.close()
            if is_whole:
                self._place_whole(self.transformer.outer_destinations)
            else:
                self._place_stored(plan)
            self._placement = placement
        return self.units

    def trace(self) -> None:
        """Log copies and uses from now on, the latest ones."""
        if isinstance(self.units, Streamer):
            # The next job opens the units with events that are timed.
            self.close()
        self.log = EventLog(max_uses=_LOGGED_USES)

    def suspend(self) -> None:
        """Give up the units' memory on the device until a unit is asked for."""
        units = self.units
        if not isinstance(units, Streamer):
            return
        if not units.has_failed:
            units.suspend()
        if units.has_failed:
            # The next job opens the files anew: a disk may have come back, or the store been made again.
            self.close()

    def close(self) -> None:
        """Stop the copies and let go of the units."""
        if isinstance(self.units, Streamer):
            self.units.close()
        self.units = UnplacedUnits()
        self._placement = ()

    def _load(self) -> Transformer:
        if self._is_stored:
            return stored_transformer(
                self._store(), self._device, UnplacedUnits(), has_fp32_head=self._has_fp32_head
            )
        transformer = self._family.transformer_class()(
            self._checkpoint.config,
            self._format.dtype,
            self._device,
            weight_format=self._format,
            job_device=torch.device("cpu"),
            has_fp32_head=self._has_fp32_head,
            units=UnplacedUnits(),
        )
        self._place_whole(transformer.outer_destinations)
        self._placement = ("whole",)
        return transformer

    def _store(self) -> Store:
        """The unit store, opened anew: it may have been deleted and converted again."""
        if isinstance(self._checkpoint, Store):
            return open_store(self._checkpoint.folder)
        return cached_store(self._checkpoint, self._format, self._config.cache_path(), self._on_progress)

    def _place_whole(self, others: Mapping[str, Destination]) -> None:
        """Read all units, and the weights outside them into ``others``."""
        assert isinstance(self._checkpoint, Checkpoint)
        self.units = units = ResidentUnits(self._layouts, self._device)
        load_into(self._checkpoint, {**others, **units.destinations()})

    def _place_stored(self, plan: Plan) -> None:
        self.units = open_units(
            self._store(),
            self._device,
            tier=plan.tier,
            ring=plan.ring or _UNUSED_RING,
            residents=plan.residents,
            log=self.log,
        )


class JobMemory:
    """The memory of one job. Jobs of one engine may take turns, section by section.

    Attributes:
        plan: how the job runs inside the budget.
    """

    def __init__(self, model: ModelMemory, job: PlannedJob) -> None:
        """Use :meth:`ModelMemory.plan`."""
        self.plan = make_plan(job, model.machine)
        self._model = model
        self._machine = model.machine
        self._job = job

    def place(self) -> tuple[UnitSource, int | None]:
        """The units where this job wants them when a section begins, and most tokens to take through an MLP at a time."""
        return self._model.place(self.plan), self.plan.token_chunk

    def make_room_to_decode(self) -> None:
        """Give up slots and residents where the plan needs their memory; the next step copies them again."""
        if not self.plan.is_arena_kept:
            self.make_room()

    def make_room(self) -> None:
        """Give up slots and residents: for what runs before the step loop, and when a job ends."""
        self._model.suspend()

    @property
    def num_condition_tokens(self) -> int:
        """Tokens of image and prompt, at most."""
        return self._job.denoise_shape(self._model.machine).sequence.condition

    def keep_tile(self, tile: int | None) -> None:
        """Keep VAE tiles of ``tile`` px, None for whole pictures: a job must end as it began.

        It is planned again only where it would have other tiles, or where the budget has changed since.

        Raises:
            BudgetError: it does not fit any more.
        """
        is_planned = self.plan.vae_tile == tile and self._machine is self._model.machine
        self._job, self._machine = replace(self._job, tile_choices=(tile,)), self._model.machine
        if not is_planned:
            self.plan = make_plan(self._job, self._machine)

    def attempt(
        self, phase: str, work: Callable[[], T], before_retry: Callable[[], None] = lambda: None
    ) -> T:
        """The result of ``work``; where the device runs out of memory, once more with a smaller plan.

        Args:
            phase: of the job, see :class:`PhaseEvent`.
            work: may be called twice.
            before_retry: called after the smaller plan is made.
        """
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error).partition("\n")[0]
        # Outside of the block: the frames of the error held the tensors of the attempt.
        self._shrink(phase, reason)
        before_retry()
        return work()

    def _shrink(self, phase: str, reason: str) -> None:
        """Free what can come again, and plan with a tenth less; the plan stays where nothing less fits."""
        self._model.suspend()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        job, machine = self._job, self._model.machine
        if phase == "decode":
            # Other pixels are better than none.
            job = replace(job, tile_choices=None)
        try:
            plan = make_plan(job, replace(machine, vram=int(machine.vram * _RELIEF)))
        except BudgetError:
            _logger.warning(
                "out of memory in phase %r (%s); nothing smaller fits: once more with memory that was freed",
                phase,
                reason,
            )
            return
        self._job, self.plan = job, plan
        _logger.warning(
            "out of memory in phase %r (%s); going on with %d of %d units resident, %s tokens at a time in the MLP, "
            "VAE tiles: %s",
            phase,
            reason,
            len(plan.residents) if plan.ring else plan.num_units,
            plan.num_units,
            plan.token_chunk or "all",
            f"{plan.vae_tile} px" if plan.vae_tile else "none",
        )


class UnplannedMemory:
    """Stands for the memory of a job whose units stay where they are."""

    def __init__(self, units: UnitSource) -> None:
        self._units = units

    def place(self) -> tuple[UnitSource, int | None]:
        """The units; all tokens go through an MLP at once."""
        return self._units, None

    def attempt(self, phase: str, work: Callable[[], T]) -> T:
        """The result of ``work``; there is no smaller plan."""
        return work()

    def make_room(self) -> None:
        """Do nothing: the units stay where they are."""


def planned_job(
    shapes: ModelSizes,
    config: EngineConfig,
    weight_format: WeightFormat,
    sampling: SamplingConfig,
    size: tuple[int, int],
) -> PlannedJob:
    """A job of an engine with ``config``, as the planner takes it."""
    return PlannedJob(
        shapes=shapes,
        sampling=sampling,
        size=size,
        precision=weight_format.name,
        compute_dtype=next(name for name, dtype in DENSE_DTYPES.items() if dtype == weight_format.dtype),
        attention=config.attention,
        vae_tiles=config.vae_tiles,
    )


class UnplacedUnits:
    """The units of a model before its first job: none is placed yet."""

    def acquire(self, index: int) -> Unit:
        raise RuntimeError(f"unit {index} has no place yet: a job must begin first")

    def release(self, index: int) -> None:
        raise RuntimeError(f"unit {index} has no place")
