"""What the planner expects of every card it knows: rows that nothing was run for, and that say so."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ...engine.errors import BudgetError
from ...engine.families.registry import PUBLISHED_NAME
from ...engine.generation.model_lookup import find_model
from ...engine.planning.budget import make_plan
from ...engine.planning.machine import cards, described_machine
from ...engine.planning.plan import Plan
from ...engine.planning.planned_job import PlannedJob
from ...engine.request.config import Request
from ..records.rows import BenchRow, Gate, in_words, make_rows

GATE = Gate(is_green=True, text="nothing ran: the planner's arithmetic, which its own tests check")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """The published model on one card.

    Attributes:
        card: as in the table of cards.
        precision: of the model.
        plan: how it would run.
    """

    card: str
    precision: str
    plan: Plan


def predict(precisions: Sequence[str], *, size: tuple[int, int], ram: str) -> Iterator[Prediction]:
    """A prediction for every card and precision that fits.

    Args:
        precisions: of the model.
        size: (height, width) in pixels.
        ram: what the engine may add to its process, such as "32GiB".
    """
    found = find_model(PUBLISHED_NAME)
    sampling = Request(image="", prompt="").sampling(found.order)
    for card in cards():
        for precision in precisions:
            job = PlannedJob(shapes=found.shapes, sampling=sampling, size=size, precision=precision)
            try:
                plan = make_plan(job, described_machine(card=card, vram=None, ram=ram))
            except BudgetError:
                continue
            yield Prediction(card=card, precision=precision, plan=plan)


def prediction_rows(prediction: Prediction) -> list[BenchRow]:
    """Pace and peak of a prediction."""
    plan, card = prediction.plan, prediction.card
    return make_rows(
        (
            ("predicted-step", card, "s/it", [plan.seconds_per_step]),
            ("predicted-frame", card, "s/frame", [plan.seconds_per_frame]),
            ("predicted-device-peak", card, "B", [plan.peak]),
        ),
        dtype="bfloat16",
        precision=prediction.precision,
        basis="predicted",
        gate=GATE,
        settings={
            "model": plan.model,
            "size": in_words(plan.size),
            "steps": plan.num_steps,
            "vram": plan.vram,
            "ram": plan.ram,
            "tier": plan.tier,
            "residents": len(plan.residents),
            "bottleneck": plan.bottleneck,
        },
    )
