"""Section order, paddings, frame indices and history of both orders."""

import pytest
import torch

from isoframe.engine import SamplingConfig
from isoframe.engine.request.sections import plan_sections, published_paddings
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
    assert first.clean_indices == (0, 37)
    assert first.clean_2x_indices == range(38, 40)
    assert first.clean_4x_indices == range(40, 56)


def test_forward_sections_share_one_layout() -> None:
    plan = plan_sections(SamplingConfig(num_sections=3, order="forward"))
    assert [section.first_latent_frame for section in plan] == [1, 10, 19]
    for section in plan:
        assert section.latent_indices == range(20, 29)
        assert section.clean_indices == (0, 19)
        assert section.clean_2x_indices == range(17, 19)
        assert section.clean_4x_indices == range(1, 17)


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


def values(latents: torch.Tensor | None) -> list[float]:
    assert latents is not None
    return latents.flatten().tolist()


def test_inverted_history_is_nearest_future_first() -> None:
    history = History(frames(100), "inverted")
    history.append(frames(*range(10, 19)))
    history.append(frames(*range(1, 10)))
    clean = history.clean_latents()
    assert values(clean.clean) == [100, 1]
    assert values(clean.clean_2x) == [2, 3]
    assert values(clean.clean_4x) == [*range(4, 19), 0]


def test_forward_history_is_nearest_past_last() -> None:
    history = History(frames(100), "forward")
    assert values(history.clean_latents().clean) == [100, 100]
    assert values(history.clean_latents().clean_2x) == [0, 0]
    history.append(frames(*range(1, 10)))
    history.append(frames(*range(10, 19)))
    clean = history.clean_latents()
    assert values(clean.clean) == [100, 18]
    assert values(clean.clean_2x) == [16, 17]
    assert values(clean.clean_4x) == [100, *range(1, 16)]


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_history_does_not_grow(order: str) -> None:
    history = History(frames(100), order)
    for _ in range(50):
        history.append(torch.randn(1, 1, 9, 1, 1))
        assert history.latents.shape[2] == 19
