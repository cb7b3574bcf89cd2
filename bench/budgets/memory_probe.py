"""One job inside a budget, in this process: ``python -P -m isoframe.bench.budgets.memory_probe JOB``, which is JSON, as its outcome is."""

import json
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import torch

from ...engine.demo import find_example
from ...engine.engine import Engine
from ...engine.errors import BudgetError, DeviceError
from ...engine.events import Event, SectionEvent, StepEvent
from ...engine.generation.model_lookup import find_model
from ...engine.model.attention import SelfAttention
from ...engine.model.attention_backends import AttentionShape
from ...engine.planning.machine import Machine, card_of_device, neutral_card
from ...engine.planning.plan import Plan
from ...engine.request.config import EngineConfig, Request, SamplingConfig
from ...engine.sampling.denoiser import Denoiser
from ...engine.weights.store import open_store
from ...engine.weights.unit_timeline import EventLog, exposed_wait
from ...quant import make_format
from ..meters.fresh_process import is_lack_of_memory
from ..meters.live_tensors import LiveTensors
from ..meters.memory_meter import take_peak_rss
from ..meters.memory_timeline import MemoryTimeline, TimelineSample, open_reader, thin_out
from ..subjects.random_memory import RandomMemory
from ..subjects.random_model import chosen_attention, draw_conditioning, model_conditioning
from .point import MemoryJob, Outcome, as_dict
from .process_peak import CudaPeak, NoPeak, ProcessPeak
from .step_budgets import median_step

# Of the second section on, frames of two windows are decoded together: a third would hold no more.
_NUM_SECTIONS = 2
_FPS = 30
# Two units stand for all: the planner may not look at the RAM that all would need.
_RAM = 2**40
_VRAM_SHARE = 0.9


def run_point(job: MemoryJob) -> Outcome:
    """Do the work of ``job``; a lack of memory is an outcome, every other failure is raised."""
    if job.emulated is not None:
        cap_device(torch.device(job.device), job.emulated)
    works = {"video": _make_video, "steps": run_steps, "stored steps": _run_stored_steps}
    try:
        return works[job.work](job)
    except BudgetError as error:
        return Outcome(status="refused", text=str(error), budget=job.budget)
    except (RuntimeError, MemoryError, DeviceError) as error:
        if not is_lack_of_memory(error):
            raise
        return Outcome(status="out of memory", text=str(error).partition("\n")[0], budget=job.budget)


def cap_device(device: torch.device, num_bytes: int) -> None:
    """Have torch's allocator take no more than a card of ``num_bytes`` has; its speed stays that of this card."""
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(min(num_bytes / total, 1.0), device)


def _of_plan(plan: Plan) -> Outcome:
    """The fields of an :class:`Outcome` that its plan decides."""
    residents = len(plan.residents) if plan.ring else plan.num_units
    return Outcome(
        status="done",
        text=f"{residents} of {plan.num_units} units resident, VAE tiles {plan.vae_tile or 'none'}",
        planned=plan.peak,
        ring=plan.ring,
        num_residents=len(plan.residents),
        num_units=plan.num_units,
        tier=plan.tier,
    )


def _measured_peak(device: torch.device) -> ProcessPeak:
    return NoPeak() if device.type == "cpu" else CudaPeak(device)


def run_steps(
    job: MemoryJob,
    measure_peak: Callable[[torch.device], ProcessPeak] = _measured_peak,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Plan, place and run ``job.num_steps`` steps of one section with random weights; the first step does not count.

    Raises:
        BudgetError: the planner refuses the budget.
        DeviceError: memory that was planned does not suffice, where the engine finds that out itself.
    """
    device = torch.device(job.device)
    peak, known = measure_peak(device), find_model(job.model)
    machine = _machine(job, device)
    sampling = SamplingConfig(num_sections=1, num_steps=job.num_steps, order=known.order)
    weight_format = make_format(job.precision, torch.float32 if device.type == "cpu" else torch.bfloat16)
    ends: list[float] = []

    def on_event(event: Event) -> None:
        if isinstance(event, StepEvent):
            peak.synchronize()
            ends.append(clock())

    with tempfile.TemporaryDirectory() as cache_dir:
        config = EngineConfig(precision=job.precision, cache_dir=cache_dir)
        memory = RandomMemory(known.shapes, config, weight_format, device, machine)
        planned = memory.plan(replace(memory.job(sampling, job.size), is_latents_only=True))
        memory.log = EventLog(max_uses=planned.plan.num_units * (job.num_steps - 1))
        chosen: list[SelfAttention] = []

        def choose(shape: AttentionShape) -> SelfAttention:
            chosen.append(chosen_attention(config, job.precision, device, shape))
            return chosen[-1]

        denoiser = Denoiser(memory.transformer, choose)
        try:
            for _ in denoiser.sample(model_conditioning(known, job.size), sampling, on_event, planned):
                # Slots and residents are still there.
                most = peak.peak()
        except BudgetError as error:
            # The plan was accepted: what lacks now was promised.
            raise DeviceError(str(error)) from MemoryError()
        attention = chosen[-1].name
        waits = exposed_wait(memory.log.timings())
        memory.close()
    step = median_step(ends)
    return replace(
        _of_plan(planned.plan),
        budget=job.budget,
        allowed=machine.vram,
        peak=most,
        source=peak.source,
        step=step,
        exposed=waits / (step * (job.num_steps - 1)),
        attention=attention,
    )


def _machine(job: MemoryJob, device: torch.device) -> Machine:
    if device.type == "cpu":
        size = job.budget or _RAM
        return Machine(vram=size, ram=size, card=neutral_card("CPU"), is_cpu=True)
    free, _ = torch.cuda.mem_get_info(device)
    card = card_of_device(torch.cuda.get_device_name(device))
    return Machine(vram=job.budget or int(free * _VRAM_SHARE), ram=_RAM, card=card)


def _run_stored_steps(job: MemoryJob) -> Outcome:
    """Sample one section of the store ``job.model`` on the CPU; the peak is what the process had not before."""
    square = torch.randn(256, 256)
    _ = square @ square
    before = psutil.Process().memory_info().rss
    sampling = SamplingConfig(num_sections=1, num_steps=job.num_steps, latent_window_size=job.window)
    conditioning = draw_conditioning(
        open_store(job.model).config, size=job.size, num_text_tokens=8, num_image_tokens=4
    )
    with tempfile.TemporaryDirectory() as cache_dir:
        config = EngineConfig(device="cpu", ram=job.budget, cache_dir=cache_dir)
        with Engine.load(job.model, config=config, size=job.size) as engine:
            plan = engine.plan_sampling(sampling, job.size)
            latents = engine.sample_video(conditioning, sampling)
    most = take_peak_rss() - before
    assert latents.isfinite().all()
    return replace(
        _of_plan(plan),
        budget=job.budget,
        planned=plan.peak + plan.host.total,
        peak=most,
        checksum=zlib.crc32(latents.numpy().tobytes()),
    )


def _make_video(job: MemoryJob) -> Outcome:
    """Make a short video of the demo's image inside the budget of ``job``."""
    device, is_cpu = torch.device(job.device), torch.device(job.device).type == "cpu"
    laps = _Laps(device)
    with ExitStack() as stack:
        timeline = MemoryTimeline(stack.enter_context(open_reader(device)))
        stack.enter_context(timeline.running())
        live = stack.enter_context(LiveTensors(device.type)) if job.is_watched else None
        config = EngineConfig(
            device=job.device,
            precision=job.precision,
            attention=job.attention,
            vram=None if is_cpu else job.budget,
            ram=job.budget if is_cpu else job.ram,
        )
        engine = Engine.load(job.model, config=config, size=job.size)
        stack.callback(engine.close)

        def on_event(event: Event) -> None:
            for listener in (timeline, live, laps):
                if listener is not None:
                    listener.on_event(event)

        request = _video_request(job)
        with tempfile.TemporaryDirectory() as folder:
            engine.render(request, Path(folder) / "video.mp4", on_event=on_event)
        outcome = _of_plan(engine.plan(request))
    reserved = None if is_cpu else torch.cuda.max_memory_reserved(device)
    return replace(
        outcome,
        budget=job.budget,
        step=statistics.median(laps.steps),
        frame=laps.sections[-1] / (4 * job.window),
        peak=peak_bytes(timeline.samples, reserved),
        source=timeline.source,
        samples=tuple(thin_out(timeline.samples)) if job.is_watched else (),
        owners=() if live is None else tuple(live.peaks()),
    )


def _video_request(job: MemoryJob) -> Request:
    image, prompt = find_example(None)
    return Request(
        image=str(image),
        prompt=prompt,
        seconds=_NUM_SECTIONS * 4 * job.window / _FPS,
        fps=_FPS,
        size=job.size,
        num_steps=job.num_steps,
        latent_window_size=job.window,
    )


def peak_bytes(samples: Sequence[TimelineSample], max_reserved: int | None) -> int:
    """Most that was held: of the device, or where it has no memory of its own of the process.

    The allocator knows its own peak, which may lie between two samples; what the device lends out beside it hardly changes.
    """
    if max_reserved is None:
        return max(sample.rss for sample in samples)
    beside = [(sample.device_used or 0) - (sample.reserved or 0) for sample in samples]
    seen = max(sample.device_used or 0 for sample in samples)
    return max(seen, max_reserved + statistics.median_low(beside))


class _Laps:
    """Seconds of steps and sections, by events; the device has done its work at the end of each.

    Attributes:
        steps: of every step but the first of each section, which also copies what the decoder had pushed out.
        sections: of every section but the first.
    """

    def __init__(self, device: torch.device) -> None:
        self.steps: list[float] = []
        self.sections: list[float] = []
        self._device = device
        self._step_end = self._section_end = 0.0

    def on_event(self, event: Event) -> None:
        if not isinstance(event, StepEvent | SectionEvent):
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        if isinstance(event, StepEvent) and event.step > 0:
            self.steps.append(now - self._step_end)
        elif isinstance(event, SectionEvent):
            if event.section > 0:
                self.sections.append(now - self._section_end)
            self._section_end = now
        self._step_end = now


if __name__ == "__main__":
    print(json.dumps(as_dict(run_point(MemoryJob.from_dict(json.loads(sys.argv[1]))))))
