"""Training examples in the layouts that the engine asks of the transformer: both orders, every padding and history."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from isoframe.engine.request.config import SamplingConfig
from isoframe.engine.request.sections import SectionPlan, plan_sections
from isoframe.engine.sampling.history import History

WINDOW = 9
_MAX_SECTIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One section of a job as the transformer meets it.

    Attributes:
        order: "inverted" or "forward".
        plan: its place and frame indices.
    """

    order: str
    plan: SectionPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Latents of one section and of its context; shapes without batch.

    Attributes:
        target: clean latents of the section [C, 9, Y, X].
        clean: start latent and nearest history frame [C, 2, Y, X].
        clean_2x: [C, 2, Y, X].
        clean_4x: [C, 16, Y, X].
    """

    target: Tensor
    clean: Tensor
    clean_2x: Tensor
    clean_4x: Tensor


def layouts_by_padding() -> dict[int, list[Layout]]:
    """Sections of inverted jobs of 1 to 8 sections, by padding: within a list only the history differs."""
    groups: dict[int, list[Layout]] = {}
    for num_sections in range(1, _MAX_SECTIONS + 1):
        for plan in plan_sections(SamplingConfig(num_sections=num_sections, order="inverted")):
            groups.setdefault(plan.latent_padding, []).append(Layout(order="inverted", plan=plan))
    return groups


def forward_layouts() -> list[Layout]:
    """Sections of a forward job; from the fourth on the history is full."""
    plans = plan_sections(SamplingConfig(num_sections=5, order="forward"))
    return [Layout(order="forward", plan=plan) for plan in plans]


def sample_layouts(rng: random.Random, num_examples: int, *, inverted_share: float) -> list[Layout]:
    """Layouts of one batch; they share their frame indices, as diffusers' transformer needs."""
    if rng.random() >= inverted_share:
        return rng.choices(forward_layouts(), weights=(3, 2, 2, 2, 1), k=num_examples)
    groups = layouts_by_padding()
    padding = rng.choices(sorted(groups), weights=(30, 24, 28, 18))[0]
    return [rng.choice(groups[padding]) for _ in range(num_examples)]


def make_example(latents: Tensor, layout: Layout) -> Example:
    """Cut one section and its history out of a clip.

    Args:
        latents: a clip of the world [C, 19, Y, X]: start latent and two periods of 9.
        layout: which section; its history holds the sections generated before it.
    """
    plan = layout.plan
    first, num_made = plan.first_latent_frame, plan.index * WINDOW
    made = range(first - num_made, first)
    if layout.order == "inverted":
        made = range(first + WINDOW, first + WINDOW + num_made)
    given = {frame: periodic_latents(latents, frame)[:, 0] for frame in made}
    seen = History(latents[None, :, :1], [plan], given).groups(plan)
    context = {group.kernel: group.latents[0] for group in seen}
    return Example(
        target=periodic_latents(latents, first),
        clean=context[1],
        clean_2x=context[2],
        clean_4x=context[4],
    )


def periodic_latents(latents: Tensor, first: int) -> Tensor:
    """Window of 9 latents from frame ``first`` of an endless clip, given its first 19 [C, 19, Y, X].

    The second period stands for all later ones; the first one differs, since its encoder saw no past.
    """
    frames = torch.arange(first, first + WINDOW)
    wrapped = torch.where(frames < 1 + 2 * WINDOW, frames, 1 + WINDOW + (frames - 1) % WINDOW)
    return latents[:, wrapped]
