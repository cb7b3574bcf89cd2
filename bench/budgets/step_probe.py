"""Steps inside one budget in a process of its own: ``python -P -m isoframe.bench.budgets.step JOB``, which is JSON."""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Protocol

import torch

from ...engine.errors import BudgetError, DeviceError
from ...engine.events import Event, StepEvent
from ...engine.families.framepack.known_shapes import KnownModel, find_shapes
from ...engine.model.attention_choice import make_self_attention
from ...engine.model.conditioning import Conditioning
from ...engine.planning.machine import CONTEXT_BYTES, Machine, card_of_device, neutral_card
from ...engine.planning.nvml import process_bytes, read_card
from ...engine.request.config import EngineConfig, SamplingConfig
from ...engine.sampling.denoiser import Denoiser
from ...engine.weights.timeline import EventLog, exposed_wait
from ...quant import make_format
from ..meters.fresh_process import is_lack_of_memory
from ..subjects.random_memory import RandomMemory
from ..subjects.random_model import draw_conditioning
from .step_budgets import BudgetJob, BudgetPoint, median_step

_NUM_TEXT_TOKENS = 32
# Two units stand for all: the planner may not look at the RAM that all would need.
_RAM = 2**40
_VRAM_SHARE = 0.9


class Probe(Protocol):
    """What a process takes on the device.

    Attributes:
        basis: where the figure comes from.
    """

    basis: str

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked for."""
        ...

    def peak(self) -> int:
        """Bytes at most so far, context included."""
        ...


class CudaProbe:
    """NVML's figure for this process; in a container, which process is whose is not told, how much more the card has lent
    out than before this one; without NVML what the allocator held and what a plan takes for the context."""

    def __init__(self, device: torch.device) -> None:
        """Begin, before there is a context."""
        self._device = device
        card = read_card(device)
        self._before = None if card is None else card.used_bytes
        torch.cuda.synchronize(device)
        if process_bytes(device):
            self.basis = "NVML, this process"
        elif self._before is not None:
            self.basis = "NVML, more than before this process"
        else:
            self.basis = f"allocator and {CONTEXT_BYTES / 2**20:.0f} MiB of context"

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def peak(self) -> int:
        """The allocator's peak, and what the process takes beside it now."""
        self.synchronize()
        beside = CONTEXT_BYTES
        used = process_bytes(self._device) or self._lent_since()
        if used is not None:
            beside = used - torch.cuda.memory_reserved(self._device)
        return torch.cuda.max_memory_reserved(self._device) + beside

    def _lent_since(self) -> int | None:
        card = read_card(self._device)
        if card is None or card.used_bytes is None or self._before is None:
            return None
        return card.used_bytes - self._before


class NoProbe:
    """The CPU has no memory of its own; a test gives its own figure."""

    basis = "not measured on the CPU"

    def synchronize(self) -> None:
        """Nothing is pending."""

    def peak(self) -> int:
        return 0


def measure(
    job: BudgetJob,
    make_probe: Callable[[torch.device], Probe],
    clock: Callable[[], float] = time.perf_counter,
) -> BudgetPoint:
    """Plan, place and run ``job.num_steps`` steps of one section; a lack of memory in it is a point that failed."""
    try:
        return _measure(job, make_probe, clock)
    except (RuntimeError, MemoryError, DeviceError) as error:
        if not is_lack_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
    except BudgetError as error:
        reason = str(error)
    return BudgetPoint(budget=job.budget, problem=f"out of memory while running: {reason}", has_failed=True)


def _measure(
    job: BudgetJob, make_probe: Callable[[torch.device], Probe], clock: Callable[[], float]
) -> BudgetPoint:
    """The point where memory suffices, or the planner's refusal."""
    device = torch.device(job.device)
    probe, known = make_probe(device), find_shapes(job.model)
    machine = _machine(job, device)
    sampling = SamplingConfig(num_sections=1, num_steps=job.num_steps, order=known.order)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    weight_format = make_format(job.precision, dtype)
    ends: list[float] = []

    def on_event(event: Event) -> None:
        if isinstance(event, StepEvent):
            probe.synchronize()
            ends.append(clock())

    with tempfile.TemporaryDirectory() as cache_dir:
        config = EngineConfig(precision=job.precision, cache_dir=cache_dir)
        try:
            memory = RandomMemory(known.shapes, config, weight_format, device, machine)
            planned = memory.plan(sampling, job.size, is_latents_only=True)
        except BudgetError as error:
            return BudgetPoint(budget=job.budget, problem=str(error))
        memory.log = EventLog(max_uses=planned.plan.num_units * (job.num_steps - 1))
        denoiser = Denoiser(
            memory.transformer,
            partial(
                make_self_attention, "auto", precision=job.precision, device=device, cache_dir=Path(cache_dir)
            ),
        )
        conditioning = _conditioning(job, known)
        for _ in denoiser.sample(conditioning, sampling, on_event, planned):
            # Slots and residents are still there.
            peak = probe.peak()
        attention = memory.transformer.self_attention.name
        timings = memory.log.timings()
        memory.close()
    step, plan = median_step(ends), planned.plan
    return BudgetPoint(
        budget=job.budget,
        allowed=machine.vram,
        planned=plan.peak,
        peak=peak,
        basis=probe.basis,
        ring=plan.ring,
        num_residents=len(plan.residents),
        num_units=plan.num_units,
        step=step,
        exposed=exposed_wait(timings) / (step * (job.num_steps - 1)),
        attention=attention,
    )


def _machine(job: BudgetJob, device: torch.device) -> Machine:
    if device.type == "cpu":
        size = job.budget or _RAM
        return Machine(vram=size, ram=size, card=neutral_card("CPU"), is_cpu=True)
    free, _ = torch.cuda.mem_get_info(device)
    card = card_of_device(torch.cuda.get_device_name(device))
    return Machine(vram=job.budget or int(free * _VRAM_SHARE), ram=_RAM, card=card)


def _conditioning(job: BudgetJob, known: KnownModel) -> Conditioning:
    return draw_conditioning(
        known.shapes.transformer,
        size=job.size,
        num_text_tokens=_NUM_TEXT_TOKENS,
        num_image_tokens=known.shapes.image_encoder.num_tokens,
    )


def main(text: str) -> None:
    """Print the point as JSON."""
    values = json.loads(text)
    job = BudgetJob(**{**values, "size": tuple(values["size"])})
    is_cpu = torch.device(job.device).type == "cpu"
    json.dump(asdict(measure(job, (lambda _: NoProbe()) if is_cpu else CudaProbe)), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
