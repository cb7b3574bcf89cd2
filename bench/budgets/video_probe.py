"""One point of ``bench vram`` in a process of its own: the job as JSON on the command line, its outcome as JSON out."""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from ...engine.demo.examples_folder import find_example
from ...engine.engine import Engine
from ...engine.errors import BudgetError, DeviceError
from ...engine.events import Event, SectionEvent, StepEvent
from ...engine.request.config import EngineConfig, Request
from ..meters.fresh_process import ProcessError, is_lack_of_memory, run_module
from ..meters.live_tensors import LiveTensors
from ..meters.memory_timeline import MemoryTimeline, TimelineSample, open_reader, thin_out
from ..records.rows import Basis
from .ceilings import Outcome, VramJob, as_dict

# Of the second section on, frames of two windows are decoded together: a third would hold no more.
_NUM_SECTIONS = 2
_FPS = 30
# The system's answer to a process that takes too much, as on Linux.
_SIGKILL = 9


class ProcessRunner:
    """Runs every point in a fresh process.

    Attributes:
        basis: of what is found.
    """

    def __init__(self, *, is_emulated: bool) -> None:
        self.basis: Basis = "emulated" if is_emulated else "measured"

    def run(self, job: VramJob) -> Outcome:
        """Run a short job.

        Raises:
            ProcessError: it failed for another reason than lack of memory, which says nothing about a ceiling.
        """
        try:
            return Outcome.from_dict(run_module("budgets.video_probe", json.dumps(as_dict(job))))
        except ProcessError as error:
            if error.signal == _SIGKILL:
                return Outcome(status="out of memory", text="killed by the system")
            raise


def run_point(job: VramJob) -> Outcome:
    """Make a short video inside the budget of ``job``."""
    if job.emulated is not None:
        cap_device(torch.device(job.device), job.emulated)
    try:
        return _Point(job).outcome()
    except BudgetError as error:
        return Outcome(status="refused", text=str(error))
    except (RuntimeError, MemoryError, DeviceError) as error:
        if not is_lack_of_memory(error):
            raise
        return Outcome(status="out of memory", text=str(error).partition("\n")[0])


def cap_device(device: torch.device, num_bytes: int) -> None:
    """Have torch's allocator take no more than a card of ``num_bytes`` has; its speed stays that of this card."""
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(min(num_bytes / total, 1.0), device)


class _Point:
    """One job, with the times of its steps and sections."""

    def __init__(self, job: VramJob) -> None:
        self._job = job
        self._device = torch.device(job.device)
        self._steps: list[float] = []
        self._sections: list[float] = []

    def outcome(self) -> Outcome:
        job = self._job
        is_cpu = self._device.type == "cpu"
        with ExitStack() as stack:
            timeline = MemoryTimeline(stack.enter_context(open_reader(self._device)))
            stack.enter_context(timeline.running())
            live = LiveTensors(self._device.type) if job.is_watched else None
            if live is not None:
                stack.enter_context(live)
            engine = Engine.load(
                job.model,
                config=EngineConfig(
                    device=job.device,
                    precision=job.precision,
                    attention=job.attention,
                    vram=None if is_cpu else job.budget,
                    ram=job.budget if is_cpu else job.ram,
                ),
                size=job.size,
            )
            stack.callback(engine.close)
            plan = self._render(engine, timeline, live)
        reserved = None if is_cpu else torch.cuda.max_memory_reserved(self._device)
        return Outcome(
            status="done",
            text=plan,
            step=statistics.median(self._steps),
            frame=self._sections[-1] / (4 * job.window),
            peak=peak_bytes(timeline.samples, reserved),
            source=timeline.source,
            samples=tuple(thin_out(timeline.samples)) if job.is_watched else (),
            owners=() if live is None else tuple(live.peaks()),
        )

    def _render(self, engine: Engine, timeline: MemoryTimeline, live: LiveTensors | None) -> str:
        """Make the video; how it was planned."""
        job, clock = self._job, _Clock(self._device)
        image, prompt = find_example(None)
        request = Request(
            image=str(image),
            prompt=prompt,
            seconds=_NUM_SECTIONS * 4 * job.window / _FPS,
            fps=_FPS,
            size=job.size,
            num_steps=job.num_steps,
            latent_window_size=job.window,
        )

        def on_event(event: Event) -> None:
            timeline.on_event(event)
            if live is not None:
                live.on_event(event)
            if isinstance(event, StepEvent):
                seconds = clock.lap("step")
                # The first step of a section also copies what the decoder had pushed out.
                self._steps += [seconds] if event.step > 0 else []
            elif isinstance(event, SectionEvent):
                self._sections.append(clock.lap("section"))
                clock.lap("step")

        with tempfile.TemporaryDirectory() as folder:
            engine.render(request, Path(folder) / "video.mp4", on_event=on_event)
        plan = engine.plan(request)
        residents = len(plan.residents) if plan.ring else plan.num_units
        return f"{residents} of {plan.num_units} units resident, VAE tiles {plan.vae_tile or 'none'}"


def peak_bytes(samples: Sequence[TimelineSample], max_reserved: int | None) -> int:
    """Most that was held: of the device, or where it has no memory of its own of the process.

    The allocator knows its own peak, which may lie between two samples; what the device lends out beside it hardly changes.
    """
    if max_reserved is None:
        return max(sample.rss for sample in samples)
    beside = [(sample.device_used or 0) - (sample.reserved or 0) for sample in samples]
    seen = max(sample.device_used or 0 for sample in samples)
    return max(seen, max_reserved + statistics.median_low(beside))


class _Clock:
    """Laps by name; the device has done its work at the end of each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: dict[str, float] = {}

    def lap(self, name: str) -> float:
        """Seconds since the last lap of this name; of the first, since any lap was taken."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        before, self._last[name] = self._last.get(name, now), now
        return now - before


if __name__ == "__main__":
    print(json.dumps(as_dict(run_point(VramJob.from_dict(json.loads(sys.argv[1]))))))
