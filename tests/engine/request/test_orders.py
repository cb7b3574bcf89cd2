"""Orders with known sections on both sides: every frame once, what each section sees, frames and files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seen_groups import positions_of, watch_groups

from isoframe.engine import ConfigError, Engine, EngineConfig, JobEvent, Request, SamplingConfig
from isoframe.engine.families.framepack.step_sizes import packed_sequence
from isoframe.engine.jobs.folder import JobFolder
from isoframe.engine.planning.host_bytes import kept_frames
from isoframe.engine.reproduction import Recipe, reproduce
from isoframe.engine.request.config import ALL_ORDERS, UNTRAINED_ORDERS
from isoframe.engine.request.schedule import Schedule
from isoframe.engine.request.sections import SectionPlan, largest_schedule, plan_sections, section_places
from isoframe.engine.sampling.history import History, needed_sections

EXAMPLES = Path(__file__).parents[3] / "examples"


@st.composite
def configs(draw: st.DrawFn) -> SamplingConfig:
    num_sections = draw(st.integers(1, 14))
    order = draw(st.sampled_from(ALL_ORDERS))
    places = tuple(draw(st.permutations(range(num_sections)))) if order == "custom" else None
    return SamplingConfig(
        num_sections=num_sections, order=order, section_order=places, latent_window_size=draw(st.integers(1, 33)),
        allow_untrained=True,
    )  # fmt: skip


def span(plan: SectionPlan) -> range:
    return range(plan.first_latent_frame, plan.first_latent_frame + len(plan.latent_indices))


@settings(deadline=None)
@given(configs())
def test_every_latent_frame_is_made_once_and_positions_never_meet(config: SamplingConfig) -> None:
    plans = plan_sections(config)
    made = sorted(frame for plan in plans for frame in span(plan))
    assert made == list(range(1, 1 + config.num_sections * config.latent_window_size))
    for plan in plans:
        seen = positions_of(plan)
        positions = [position for group in (plan.latent_indices, *seen.values()) for position in group]
        assert len(set(positions)) == len(positions)
        assert seen[1][0] == min(positions) == 0
        assert len(seen[2]) == 2
        assert len(seen[4]) == 16


@settings(deadline=None)
@given(configs().filter(lambda config: config.order in UNTRAINED_ORDERS))
def test_a_section_sees_what_is_made_beside_it_and_in_the_order_of_time(config: SamplingConfig) -> None:
    made = {0}
    for plan in plan_sections(config):
        pairs = list(zip(span(plan), plan.latent_indices, strict=True))
        for level in plan.seen.levels:
            pairs += [] if level.is_start else list(zip(level.frames, level.indices, strict=True))
        places = [frame for frame, _ in sorted(pairs, key=lambda pair: pair[1])]
        assert places == sorted(places)
        beside = {plan.first_latent_frame - 1, span(plan).stop} & made
        assert beside <= plan.seen.sources()
        made |= set(span(plan))


@settings(deadline=None)
@given(configs().filter(lambda config: config.order in UNTRAINED_ORDERS), st.data())
def test_frames_are_kept_until_nobody_needs_them_and_a_resumed_job_sees_the_same(
    config: SamplingConfig, data: st.DataObject
) -> None:
    plans = plan_sections(config)
    start = torch.zeros(1, 1, 1, 1, 1)

    def latents(plan: SectionPlan) -> torch.Tensor:
        return torch.tensor([float(frame) for frame in span(plan)]).view(1, 1, -1, 1, 1)

    stop = data.draw(st.integers(0, len(plans)))
    known, resumed = History(start, plans), History(start, plans)
    for index in needed_sections(plans, stop):
        resumed.append(plans[index], latents(plans[index]))
    made: set[int] = set()
    for plan in plans:
        for store in (known, resumed) if plan.index >= stop else (known,):
            for group, levels in zip(store.groups(plan), plan.seen.groups(), strict=True):
                frames = [frame for level in levels for frame in level.frames]
                assert group.latents.flatten().tolist() == [
                    float(frame) if frame in made else 0.0 for frame in frames
                ]
            store.append(plan, latents(plan))
        made |= set(span(plan))
        if plan.index + 1 < len(plans):
            assert len(known.frames.keys() - {0}) == kept_frames(plans)[plan.index + 1]
    assert not known.frames


@pytest.mark.parametrize(("order", "num_ahead"), [("endpoints", 1), ("planned", 15 * 9)])
def test_known_frames_are_those_of_the_past_and_of_what_is_planned_ahead(order: str, num_ahead: int) -> None:
    """Of the end that endpoints look at one frame; planned sections are the past of those after them."""
    config = SamplingConfig(num_sections=60, order=order, allow_untrained=True)
    plans = plan_sections(config)
    known = History(torch.zeros(1, 1, 1, 1, 1), plans)
    sizes = []
    for plan in plans:
        known.append(plan, torch.zeros(1, 1, 9, 1, 1))
        sizes.append(len(known.frames))
        assert all(frame.untyped_storage().nbytes() == frame.nbytes for frame in known.frames.values())
    assert max(sizes) <= 1 + 19 + num_ahead


def test_the_places_of_each_order() -> None:
    def places(num_sections: int, order: str) -> tuple[int, ...]:
        return section_places(SamplingConfig(num_sections=num_sections, order=order, allow_untrained=True))

    assert places(5, "endpoints") == (4, 0, 1, 2, 3)
    assert places(1, "endpoints") == places(1, "planned") == (0,)
    assert places(10, "planned") == (9, 5, 1, 0, 2, 3, 4, 6, 7, 8)


def test_endpoints_are_the_schedule_of_the_paper_with_an_endpoint() -> None:
    plans = plan_sections(SamplingConfig(num_sections=6, order="endpoints", allow_untrained=True))
    middle = plans[2]
    schedule = Schedule.parse("f1k1_x_td_f16k4f2k2f1k1_g9_x_f1k1")
    placed = [list(places) for _, places in schedule.layout(0)]
    assert middle.place == 1
    *near, ahead = [list(level.indices) for level in middle.seen.levels]
    assert [*near, list(middle.latent_indices)] == placed[:5]
    # Three windows, the most that the published rule shows, lie between the section and the end.
    assert ahead == [placed[5][0] + 3 * 9]
    assert [level.frames.start for level in middle.seen.levels if level.kernel == 1] == [0, 9, 46]
    last = plans[-1]
    assert (last.place, positions_of(last)[1][2]) == (4, last.latent_indices.stop)


def test_the_planner_counts_the_frame_ahead() -> None:
    from isoframe.engine.families.framepack.model_sizes import published_shapes

    config = published_shapes().transformer
    samplings = (
        SamplingConfig(num_sections=3, order="forward"),
        SamplingConfig(num_sections=3, order="planned", allow_untrained=True),
    )
    two, three = (
        packed_sequence(config, (640, 608), largest_schedule(sampling), 0, 0) for sampling in samplings
    )
    assert three.clean - two.clean == 40 * 38
    schedule = Schedule.parse("f1k1_x_td_f16k4f2k2f1k1_g9_x_f1k1")
    assert schedule.num_context_tokens((80, 76)) == three.clean


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"order": "endpoints"}, "needs allow_untrained=True"),
    ({"order": "custom"}, "need each other"),
    ({"section_order": (0,)}, "need each other"),
    ({"order": "custom", "section_order": (0, 0), "allow_untrained": True}, "every place from 0 to 2 once"),
    (
        {"order": "planned", "allow_untrained": True, "step_cache": "magcache"},
        "no ratios for order 'planned'",
    ),
    ({"order": "endpoint"}, "did you mean 'endpoints'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=str)
def test_what_no_checkpoint_was_trained_for_is_refused_unless_allowed(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(num_sections=3, **changes)
    with pytest.raises(ConfigError, match=message):
        Request(image="", prompt="", seconds=3.6, **changes)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load("demo", config=EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu"))


@pytest.fixture
def request_of() -> Callable[..., Request]:
    """A job of 6 sections of 4 frames."""

    def make(**changes: Any) -> Request:
        fields: dict[str, Any] = {
            "image": EXAMPLES / "bounce.png", "prompt": "a red circle bounces", "seconds": 0.8, "num_steps": 2,
            "latent_window_size": 1, "seed": 5, "allow_untrained": True,
        }  # fmt: skip
        return Request(**fields | changes)

    return make


CASES: list[dict[str, Any]] = [
    {"order": "endpoints"},
    {"order": "planned"},
    {"order": "custom", "section_order": (3, 0, 5, 1, 4, 2)},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
def test_frames_are_the_whole_video_whatever_the_order(
    engine: Engine,
    request_of: Callable[..., Request],
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = watch_groups(monkeypatch)
    events: list[Any] = []
    sections = list(engine.generate(request_of(**changes), on_event=events.append))
    places = sorted(p for s in sections for p in range(s.first_frame, s.first_frame + len(s.frames)))
    assert places == list(range(25))
    job = next(event for event in events if isinstance(event, JobEvent))
    assert "experimental" in job.notes[0]
    # What a section sees are latents that came before it.
    plans = plan_sections(request_of(**changes).sampling())
    latents = {
        plan.first_latent_frame: section.latents[0, :, 0]
        for plan, section in zip(plans, sections, strict=True)
    }
    for plan, groups in zip(plans, seen, strict=True):
        frames = [level.frames.start for level in plan.seen.groups()[-1]]
        for index, frame in enumerate(frames):
            expected = latents.get(frame) if frame in _made_before(plan, plans) else None
            if frame > 0:
                single = groups[-1].latents[0, :, index]
                assert torch.equal(single, torch.zeros_like(single) if expected is None else expected)


def _made_before(plan: SectionPlan, plans: list[SectionPlan]) -> set[int]:
    return {frame for other in plans[: plan.index] for frame in span(other)}


@pytest.mark.parametrize(("changes", "stopped_at"), [(CASES[0], 1), (CASES[2], 4)], ids=str)
def test_such_a_job_resumes_and_redoes(
    engine: Engine,
    request_of: Callable[..., Request],
    tmp_path: Path,
    changes: dict[str, Any],
    stopped_at: int,
) -> None:
    request = request_of(**changes)
    straight = engine.render(request, tmp_path / "straight.mp4", latents_path=tmp_path / "all.safetensors")

    def stop(event: Any) -> None:
        if getattr(event, "step", None) == 1 and event.section == stopped_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.render(request, tmp_path / "v.mp4", job_dir=tmp_path / "job", on_event=stop)
    assert engine.resume(tmp_path / "job").path.read_bytes() == straight.path.read_bytes()
    JobFolder.open(tmp_path / "job").redo(3, seed=9)
    redone = engine.resume(tmp_path / "job", tmp_path / "redone.mp4")
    assert redone.num_frames == 25
    assert redone.path.read_bytes() != straight.path.read_bytes()


def test_such_a_video_is_reproduced(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    made = engine.render(request_of(**CASES[2]), tmp_path / "made.mp4")
    recipe = Recipe.read(made.path)
    asked = recipe.request(EXAMPLES / "bounce.png", tmp_path)
    assert asked.section_order == CASES[2]["section_order"]
    assert reproduce(engine, recipe, asked, tmp_path / "again.mp4").is_identical


def test_the_forward_order_as_a_plan_of_the_caller_is_the_forward_order(
    engine: Engine, request_of: Callable[..., Request]
) -> None:
    """All that is known lies in the past: the same layout, so the same bits."""
    forward = list(engine.generate(request_of(order="forward")))
    planned = list(engine.generate(request_of(order="custom", section_order=(0, 1, 2, 3, 4, 5))))
    assert all(torch.equal(a.latents, b.latents) for a, b in zip(forward, planned, strict=True))
    frames = [np.concatenate([s.frames for s in sections]) for sections in (forward, planned)]
    assert np.array_equal(*frames)
