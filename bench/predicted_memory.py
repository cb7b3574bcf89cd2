"""What ``bench vram`` says without a GPU: ceilings by the planner, owners by tensors without memory; nothing runs."""

from collections.abc import Iterator

from ..engine.budget import make_plan
from ..engine.cards import Card
from ..engine.config import SamplingConfig
from ..engine.errors import BudgetError
from ..engine.known_shapes import KnownModel
from ..engine.machine import Machine
from ..engine.model_shapes import EncoderShape
from ..engine.plan import PhaseBytes, Plan
from ..engine.planned_job import PlannedJob
from ..engine.roofline import copy_rate
from .memory_timeline import MemorySample
from .planned_step import find_step_owners
from .rows import Basis
from .vram import Outcome, VramJob

_NUM_SECTIONS = 4
# Of the phases before the step loop only the reading of their weights is predicted; none is drawn thinner than this.
_LEAST_SECONDS = 0.5
_DISK = "disk"


class PlanRunner:
    """Asks the planner.

    Attributes:
        basis: of what is found.
    """

    basis: Basis = "predicted"

    def __init__(self, known: KnownModel, card: Card, ram: int) -> None:
        """Plan for ``card`` and ``ram`` bytes on the host."""
        self._known = known
        self._card = card
        self._ram = ram

    def run(self, job: VramJob) -> Outcome:
        """The plan of ``job``; watched, its time line, and the owners of a step on the meta device."""
        try:
            plan = make_plan(self._planned(job), Machine(vram=job.budget, ram=self._ram, card=self._card))
        except BudgetError as error:
            return Outcome(status="refused", text=str(error))
        residents = len(plan.residents) if plan.ring else plan.num_units
        return Outcome(
            status="done",
            text=f"{residents} of {plan.num_units} units resident, VAE tiles {plan.vae_tile or 'none'}",
            step=plan.seconds_per_step,
            frame=plan.seconds_per_frame,
            peak=plan.peak,
            source="planner",
            samples=tuple(predict_timeline(plan, self._known)) if job.is_watched else (),
            owners=tuple(find_step_owners(plan, self._known, self._sampling(job))) if job.is_watched else (),
        )

    def _planned(self, job: VramJob) -> PlannedJob:
        return PlannedJob(
            shapes=self._known.shapes,
            sampling=self._sampling(job),
            size=job.size,
            precision=job.precision,
            attention=job.attention,
        )

    def _sampling(self, job: VramJob) -> SamplingConfig:
        return SamplingConfig(
            num_sections=_NUM_SECTIONS,
            num_steps=job.num_steps,
            order=self._known.order,
            latent_window_size=job.window,
        )


def predict_timeline(plan: Plan, known: KnownModel) -> Iterator[MemorySample]:
    """Two samples a phase, at its beginning and end: tensors, with workspace, with the driver's context."""
    start = 0.0
    for phase, seconds in _phase_seconds(plan, known):
        held = {
            "allocated": phase.weights + phase.slots + phase.activations,
            "reserved": phase.total - phase.context,
            "device_used": phase.total,
        }
        for moment in (start, start + seconds):
            yield MemorySample(
                seconds=moment,
                phase=_EVENT_PHASES[phase.name],
                rss=plan.host.total,
                pinned=plan.host.staging + (plan.host.store if plan.tier == "pinned" else 0),
                **held,
            )
        start += seconds


_EVENT_PHASES = {
    "text encode": "text",
    "image encode": "image",
    "VAE encode": "image",
    "prepare": "prepare",
    "denoise": "denoise",
    "VAE decode": "decode",
}


def _phase_seconds(plan: Plan, known: KnownModel) -> Iterator[tuple[PhaseBytes, float]]:
    shapes, rate = known.shapes, copy_rate(plan.card, _DISK)

    def reading(*encoders: EncoderShape) -> float:
        num_bytes = 2 * sum(encoder.num_params for encoder in encoders)
        return max(num_bytes / rate, _LEAST_SECONDS)

    yield plan.phase("text encode"), reading(shapes.text_encoder, shapes.text_encoder_2)
    yield plan.phase("image encode"), reading(shapes.image_encoder)
    yield plan.phase("VAE encode"), max(plan.phase("VAE encode").weights / rate, _LEAST_SECONDS)
    yield plan.phase("prepare"), _LEAST_SECONDS
    for _ in range(_NUM_SECTIONS):
        yield plan.phase("denoise"), plan.num_steps * plan.seconds_per_step
        yield plan.phase("VAE decode"), plan.decode_seconds
