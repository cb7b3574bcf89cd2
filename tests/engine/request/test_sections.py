"""Section order, paddings, frame indices and history of both orders."""

import pytest
import torch
from seen_groups import latents_of, positions_of

from isoframe.engine import SamplingConfig
from isoframe.engine.request.sections import SectionPlan, plan_sections, published_paddings
from isoframe.engine.sampling.history import History


@pytest.mark.parametrize(
    ("num_sections", "paddings"),
    [(1, (0,)), (4, (3, 2, 1, 0)), (5, (3, 2, 2, 1, 0)), (8, (3, 2, 2, 2, 2, 2, 1, 0))],
)
def test_published_paddings(num_sections: int, paddings: tuple[int, ...]) -> None:
    assert published_paddings(num_sections) == paddings


def test_inverted_sections_go_from_the_end_to_the_start() -> None:
    plan = plan_sections(SamplingConfig(num_sections=5))
    assert [section.first_latent_frame for section in plan] == [37, 28, 19, 10, 1]
    assert [section.latent_padding for section in plan] == [3, 2, 2, 1, 0]
    first = plan[0]
    assert first.latent_indices == range(28, 37)
    assert positions_of(first) == {1: (0, 37), 2: (38, 39), 4: tuple(range(40, 56))}


def test_forward_sections_share_one_layout() -> None:
    plan = plan_sections(SamplingConfig(num_sections=3, order="forward"))
    assert [section.first_latent_frame for section in plan] == [1, 10, 19]
    for section in plan:
        assert section.latent_indices == range(20, 29)
        assert positions_of(section) == {1: (0, 19), 2: (17, 18), 4: tuple(range(1, 17))}


@pytest.mark.parametrize(("order", "num_sections"), [("inverted", 1), ("inverted", 7), ("forward", 4)])
@pytest.mark.parametrize("window", [1, 3, 9, 33])
def test_sections_tile_the_video(order: str, num_sections: int, window: int) -> None:
    plan = plan_sections(SamplingConfig(num_sections=num_sections, order=order, latent_window_size=window))
    starts = sorted(section.first_latent_frame for section in plan)
    assert starts == [1 + window * i for i in range(num_sections)]
    assert all(len(section.latent_indices) == window for section in plan)


def test_caller_paddings_replace_the_published_ones() -> None:
    plan = plan_sections(SamplingConfig(num_sections=3, latent_paddings=(5, 5, 0)))
    assert [section.latent_indices[0] for section in plan] == [46, 46, 1]


def frames(*values: float) -> torch.Tensor:
    return torch.tensor(values).view(1, 1, -1, 1, 1)


def values(history: History, plan: SectionPlan) -> dict[int, list[float]]:
    """What a section sees, by kernel."""
    return {
        kernel: latents.flatten().tolist() for kernel, latents in latents_of(history.groups(plan)).items()
    }


def test_inverted_history_is_nearest_future_first() -> None:
    plans = plan_sections(SamplingConfig(num_sections=3))
    history = History(frames(100), plans)
    history.append(plans[0], frames(*range(10, 19)))
    history.append(plans[1], frames(*range(1, 10)))
    assert values(history, plans[2]) == {1: [100, 1], 2: [2, 3], 4: [*range(4, 19), 0]}


def test_forward_history_is_nearest_past_last() -> None:
    plans = plan_sections(SamplingConfig(num_sections=3, order="forward"))
    history = History(frames(100), plans)
    assert values(history, plans[0]) == {1: [100, 100], 2: [0, 0], 4: [0] * 16}
    history.append(plans[0], frames(*range(1, 10)))
    history.append(plans[1], frames(*range(10, 19)))
    assert values(history, plans[2]) == {1: [100, 18], 2: [16, 17], 4: [100, *range(1, 16)]}


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_history_does_not_grow(order: str) -> None:
    plans = plan_sections(SamplingConfig(num_sections=50, order=order))
    history = History(frames(100), plans)
    for plan in plans[:-1]:
        history.append(plan, torch.randn(1, 1, 9, 1, 1))
        assert len(history.frames.keys() - {0}) == min(9 * (plan.index + 1), 19)
