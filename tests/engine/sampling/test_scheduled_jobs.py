"""Packing schedules that run: what sections see, how it is packed, whole jobs, and what is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from seen_groups import latents_of, positions_of, watch_groups
from torch import Tensor
from typer.testing import CliRunner

from isoframe.bench.quality.codebook_fit import save_codebook
from isoframe.engine import Conditioning, ConfigError, Engine, EngineConfig, JobEvent, Request, SamplingConfig
from isoframe.engine.generation.model_lookup import find_model
from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.jobs.folder import JobFolder
from isoframe.engine.media.video import read_video_info
from isoframe.engine.model.packing import ContextGroup
from isoframe.engine.planning.host_bytes import kept_frames
from isoframe.engine.planning.machine import described_machine
from isoframe.engine.planning.planned_job import PlannedJob
from isoframe.engine.reproduction import Recipe, reproduce
from isoframe.engine.request.config import ALL_ORDERS
from isoframe.engine.request.schedule import Schedule, check_sides, published_schedule
from isoframe.engine.request.sections import SectionPlan, most_tail_frames, plan_sections
from isoframe.engine.sampling.history import History, SampledSections, needed_sections

EXAMPLES = Path(__file__).parents[3] / "examples"
LEVELS = ["f1k1", "f16k4f2k2f1k1", "f9k8f3k4f4k2f1k1", "f2k1f5k2"]
PAST = st.builds("{}{}_".format, st.sampled_from(["", "td_", "ta_", "tc_"]), st.sampled_from(LEVELS))
FUTURE = st.builds("_{}{}".format, st.sampled_from(LEVELS), st.sampled_from(["", "_td", "_ta", "_tc"]))


@st.composite
def configs(draw: st.DrawFn, most_sections: int = 30) -> SamplingConfig:
    """A job with a schedule that its order can have: vanilla, inverted, symmetric, with an endpoint, important start."""
    num_sections, window = draw(st.integers(1, most_sections)), draw(st.sampled_from([1, 4, 9]))
    order = draw(st.sampled_from(ALL_ORDERS))
    start = draw(st.sampled_from(["", "f1k1_x_", "f1k1f1k1_x_", "f3k2_x_"]))
    past, future = (draw(st.one_of(st.just(""), side)) for side in (PAST, FUTURE))
    ahead = "" if future else draw(st.sampled_from(["", "_x_f1k1", "_x_f1k1f4k4"]))
    text = f"{start}{past}g{window}{future}{ahead}"
    try:
        schedule = Schedule.parse(text)
        check_sides(schedule, order)
    except ConfigError:
        assume(False)
    places = tuple(draw(st.permutations(range(num_sections)))) if order == "custom" else None
    return SamplingConfig(
        num_sections=num_sections, order=order, section_order=places, latent_window_size=window, schedule=text,
        allow_untrained=True,
    )  # fmt: skip


def schedule_of(config: SamplingConfig) -> Schedule:
    assert config.schedule is not None
    return Schedule.parse(config.schedule)


def span(plan: SectionPlan) -> range:
    return range(plan.first_latent_frame, plan.first_latent_frame + len(plan.latent_indices))


@settings(deadline=None)
@given(configs())
def test_every_latent_frame_is_made_once_and_no_position_is_taken_twice(config: SamplingConfig) -> None:
    plans = plan_sections(config)
    assert sorted(frame for plan in plans for frame in span(plan)) == list(
        range(1, 1 + config.num_sections * config.latent_window_size)
    )
    for plan in plans:
        groups = [plan.latent_indices, *(level.indices for level in plan.seen.levels)]
        groups += [] if plan.seen.tail is None else [plan.seen.tail.indices]
        positions = [position for group in groups for position in group]
        assert len(set(positions)) == len(positions)
        assert min(positions) == 0


@settings(deadline=None)
@given(configs())
def test_what_touches_a_section_has_positions_at_its_distance(config: SamplingConfig) -> None:
    schedule = schedule_of(config)
    touching = {side for _, side in schedule.sides()} & {"past", "future"}
    for plan in plan_sections(config):
        offset = plan.latent_indices.start - plan.first_latent_frame
        near = [
            level
            for level, (_, side) in zip(
                plan.seen.levels, [pair for pair in schedule.sides() if str(pair[0])[0] == "f"], strict=True
            )
            if side in touching
        ]
        assert near or touching == set()
        assert all(level.indices.start - level.frames.start == offset for level in near)
        tail = plan.seen.tail
        if tail is not None and tail.frames and len(tail.frames) <= 128:
            assert tail.indices.start - tail.frames.start == offset


def published_positions(order: str, window: int, padding: int) -> tuple[range, dict[int, tuple[int, ...]]]:
    """Positions of the noisy latents and of what is seen, as the published programs lay them out."""
    if order == "forward":
        # [start | 16 | 2 | 1 | window]
        return range(20, 20 + window), {1: (0, 19), 2: (17, 18), 4: tuple(range(1, 17))}
    # [start | padding | window | 1 | 2 | 16]
    first = 1 + padding * window
    end = first + window
    return range(first, end), {1: (0, end), 2: (end + 1, end + 2), 4: tuple(range(end + 3, end + 19))}


@pytest.mark.parametrize("window", [1, 4, 9])
def test_the_published_layouts_are_those_of_the_schedules_that_name_them(window: int) -> None:
    for order in ("inverted", "forward"):
        for num_sections in range(1, 14):
            plain = SamplingConfig(num_sections=num_sections, order=order, latent_window_size=window)
            named = replace(plain, schedule=str(published_schedule(order, window)))
            assert plan_sections(plain) == plan_sections(named)
            for plan in plan_sections(plain):
                layout = published_positions(order, window, plan.latent_padding)
                assert (plan.latent_indices, positions_of(plan)) == layout


def test_the_forward_layout_sees_the_frames_that_a_custom_order_names() -> None:
    custom = SamplingConfig(
        num_sections=5, order="custom", section_order=(0, 1, 2, 3, 4), allow_untrained=True
    )
    assert plan_sections(custom) == plan_sections(SamplingConfig(num_sections=5, order="forward"))


def frames_of(plan: SectionPlan) -> Tensor:
    return torch.tensor([float(frame) for frame in span(plan)]).view(1, 1, -1, 1, 1)


@settings(deadline=None, max_examples=150)
@given(configs(most_sections=60), st.data())
def test_a_section_sees_its_frames_and_the_means_of_its_tail_also_in_a_resumed_job(
    config: SamplingConfig, data: st.DataObject
) -> None:
    """A latent's only value is its frame's number, the start latent's 0.5."""
    plans = plan_sections(config)
    start = torch.full((1, 1, 1, 1, 1), 0.5)
    stop = data.draw(st.integers(0, len(plans)))
    history, resumed = History(start, plans), History(start, plans)
    for index in needed_sections(plans, stop):
        resumed.append(plans[index], frames_of(plans[index]))
    made = {0: 0.5}
    for plan in plans:
        for store in (history, resumed) if plan.index >= stop else (history,):
            check_seen(plan, store.groups(plan), made)
            store.append(plan, frames_of(plan))
        made |= {frame: float(frame) for frame in span(plan)}
    assert not history.frames
    assert not history.means


def check_seen(plan: SectionPlan, groups: list[ContextGroup], made: dict[int, float]) -> None:
    expected = [
        [made.get(frame, 0.0) for level in levels for frame in level.frames] for levels in plan.seen.groups()
    ]
    if plan.seen.tail is not None:
        values = [made[frame] for frame in plan.seen.tail.frames]
        expected.insert(0, values if plan.seen.tail.kind == "ta" else [sum(values) / max(len(values), 1)])
        frames = plan.seen.tail.frames
        beyond = frames.start - 1 if frames.start <= plan.first_latent_frame else frames.stop
        assert beyond not in made or (plan.seen.tail.kind == "ta" and len(frames) == 128)
    for group, values in zip(groups, expected, strict=True):
        assert group.latents.flatten().tolist() == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize(
    ("text", "order", "num_frames", "num_means"),
    [
        ("f1k1_x_td_f16k4f4k2f1k1_g9", "forward", 22, 0),
        ("ta_f16k8f4k4f2k2f1k1_g9", "forward", 23, 23 + 128),
        ("tc_f16k4f2k2f1k1_g9", "forward", 19, 19),
        ("f1k1_x_g9_f1k1f2k2f16k4_tc", "inverted", 20, 19),
        ("f1k1f1k1_x_f2k2f1k1_g9_f1k1f2k2_ta", "inverted", 9, 9 + 128),
    ],
)
def test_a_history_is_bounded_however_long_the_video_is(
    text: str, order: str, num_frames: int, num_means: int
) -> None:
    config = SamplingConfig(num_sections=200, order=order, schedule=text, allow_untrained=True)
    plans = plan_sections(config)
    history = History(torch.zeros(1, 1, 1, 1, 1), plans)
    sizes, kept = [], [*kept_frames(plans)[1:], 0]
    for plan in plans:
        history.append(plan, frames_of(plan))
        sizes.append((len(history.frames), len(history.means)))
        assert len(history.frames.keys() - {0}) == kept[plan.index]
        assert all(frame.untyped_storage().nbytes() == frame.nbytes for frame in history.frames.values())
    assert max(size[0] for size in sizes) <= num_frames
    assert max(size[1] for size in sizes) <= num_means
    assert (
        max(plan.seen.num_tokens((80, 76)) for plan in plans)
        <= Schedule.parse(text).bound((80, 76)) - 9 * 40 * 38
    )


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load("demo", config=EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu"))


def reference_tokens(engine: Engine, group: ContextGroup) -> Tensor:
    """Tokens [N, D] by padding, means and convolution."""
    transformer = engine._denoiser.transformer
    embedding = transformer.clean_embedders[group.kernel]
    cell = {1: (1, 2, 2), 2: (2, 4, 4), 4: (4, 8, 8), 8: (8, 16, 16)}[group.kernel]
    latents = group.latents
    if group.is_tail:
        latents = latents.repeat(1, 1, 1, *cell[1:])
    for dim, k in enumerate(cell, start=2):
        last = latents.select(dim, -1).unsqueeze(dim)
        latents = torch.cat([latents, *[last] * (-latents.shape[dim] % k)], dim=dim)
    if group.kernel == 8:
        latents = torch.nn.functional.avg_pool3d(latents, 2)
    tokens = torch.nn.functional.conv3d(
        latents, embedding.weight, embedding.bias, stride=embedding.weight.shape[2:]
    )
    return tokens[0].flatten(1).T


def reference_rows(engine: Engine, group: ContextGroup, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rotary rows [N, K / 2] as means over the cells of a table of all positions."""
    config = engine._denoiser.transformer.config
    positions = torch.stack(
        torch.meshgrid(
            torch.tensor(list(group.indices)), torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij"
        )
    ).float()
    angles = torch.cat(
        [
            axis[..., None] * (1.0 / config.rope_theta ** (torch.arange(0, dim, 2) / dim))
            for axis, dim in zip(positions, config.rope_axes_dim, strict=True)
        ],
        dim=-1,
    )
    pool = [group.kernel] * 3
    if group.is_tail:
        pool = [group.kernel if group.latents.shape[2] > 1 else len(group.indices), *grid]
    rows = []
    for table in (angles.double().cos(), angles.double().sin()):
        padded = table
        for dim, k in enumerate(pool):
            last = padded.select(dim, -1).unsqueeze(dim)
            padded = torch.cat([padded, *[last] * (-padded.shape[dim] % k)], dim=dim)
        pooled = torch.nn.functional.avg_pool3d(padded.permute(3, 0, 1, 2)[None], tuple(pool))
        rows.append(pooled[0].flatten(1).T.float())
    return rows[0], rows[1]


@pytest.mark.parametrize("size", [(8, 8), (10, 6), (22, 38)])
@pytest.mark.parametrize(
    ("kernel", "num_frames", "tail"),
    [
        (1, 1, None), (2, 5, None), (4, 16, None), (8, 16, None), (8, 5, None), (1, 7, "ta"), (4, 9, "ta"),
        (8, 11, "ta"), (4, 40, "tc"), (8, 1, "tc"),
    ],
)  # fmt: skip
def test_a_level_is_packed_as_its_definition_says(
    engine: Engine, kernel: int, num_frames: int, tail: str | None, size: tuple[int, int]
) -> None:
    transformer = engine._denoiser.transformer
    shape = (1 if tail == "tc" else num_frames, *((1, 1) if tail else size))
    group = ContextGroup(
        kernel, torch.randn(1, 16, *shape), range(3, 3 + num_frames), is_tail=tail is not None
    )
    with torch.inference_mode():
        packed = transformer.pack_section([group], range(50, 52), (2, *size))
        expected = reference_tokens(engine, group)
        cos, sin = reference_rows(engine, group, (size[0] // 2, size[1] // 2))
    num_tokens = packed.clean_tokens.shape[1]
    assert expected.shape[0] == cos.shape[0] == num_tokens
    torch.testing.assert_close(packed.clean_tokens[0], expected, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(packed.cos[:num_tokens], cos, atol=1e-6, rtol=0)
    torch.testing.assert_close(packed.sin[:num_tokens], sin, atol=1e-6, rtol=0)


SCHEDULES = {
    "vanilla": ("td_f16k4f4k2f1k1_g2", "forward"),
    "inverted": ("f1k1_x_g2_f1k1f4k2f16k4_td", "inverted"),
    "important-start": ("f1k1f1k1f2k2_x_td_f16k4f2k2f1k1_g2", "forward"),
    "k8": ("f1k1_x_g2_f1k1f2k2f4k4f16k8", "inverted"),
    "symmetric": ("f4k4f2k2f1k1_g2_f1k1f2k2f4k4", "inverted"),
    "averaged-tail": ("f1k1_x_ta_f2k2f1k1_g2", "forward"),
    "averaged-tail-k8": ("f1k1_x_g2_f1k1f8k8_ta", "inverted"),
    "total-tail": ("f1k1_x_g2_f1k1f2k2_tc", "inverted"),
    "total-tail-forward": ("tc_f4k4f2k2f1k1_g2", "forward"),
    "endpoint": ("td_f16k4f4k2f1k1_g2_x_f1k1", "endpoints"),
    "planned": ("f1k1_x_tc_f16k4f2k2f1k1_g2_x_f1k1", "planned"),
}


@pytest.fixture
def request_of() -> Callable[..., Request]:
    """A job of 6 sections of 8 frames."""

    def make(name: str, **changes: Any) -> Request:
        text, order = SCHEDULES[name]
        fields: dict[str, Any] = {
            "image": EXAMPLES / "bounce.png", "prompt": "a red circle bounces", "seconds": 1.6, "num_steps": 2,
            "latent_window_size": 2, "seed": 5, "schedule": text, "order": order, "allow_untrained": True,
        }  # fmt: skip
        return Request(**fields | changes)

    return make


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_makes_the_whole_video_with_the_tokens_that_are_planned(
    engine: Engine, request_of: Callable[..., Request], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watch_groups(monkeypatch)
    request, events = request_of(name), []
    sections = list(engine.generate(request, on_event=events.append))
    assert len(sections) == 6
    places = sorted(p for s in sections for p in range(s.first_frame, s.first_frame + len(s.frames)))
    assert places == list(range(4 * 12 + 1))
    assert all(section.latents.isfinite().all() for section in sections)
    job = next(event for event in events if isinstance(event, JobEvent))
    assert any(f"schedule {request.schedule}: experimental" in note for note in job.notes)
    sampling = request.sampling()
    schedule = schedule_of(sampling)
    expected = []
    for plan in plan_sections(sampling):
        num_tail = 0 if plan.seen.tail is None else len(plan.seen.tail.frames)
        expected.append(schedule.num_context_tokens((8, 8), num_tail))
    counts = [sum(group.num_tokens for group in groups) for groups in seen]
    assert counts == expected
    planned = PlannedJob(shapes=find_model("demo").shapes, sampling=sampling, size=(64, 64), precision="fp32")
    sequence = planned.denoise_shape(described_machine(card="RTX 3060", vram=None, ram=None)).sequence
    assert sequence.clean == max(counts)
    assert sequence.latent <= schedule.bound((8, 8))


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_the_published_schedule_by_its_name_gives_the_same_latents(engine: Engine, order: str) -> None:
    request = Request(image=EXAMPLES / "bounce.png", prompt="a red circle bounces", order=order, num_steps=4)
    conditioning = engine.condition(request)
    fused = SamplingConfig(num_sections=4, num_steps=4, order=order)
    named = SamplingConfig(
        num_sections=4, num_steps=4, order=order, schedule=str(published_schedule(order, 9))
    )
    without_tail = SamplingConfig(
        num_sections=4,
        num_steps=4,
        order=order,
        schedule=str(published_schedule(order, 9)).replace("_td", ""),
    )
    expected = engine.sample_video(conditioning, fused)
    assert torch.equal(engine.sample_video(conditioning, named), expected)
    assert torch.equal(engine.sample_video(conditioning, without_tail), expected)


@pytest.mark.parametrize(
    ("name", "stopped_at"), [("inverted", 2), ("averaged-tail", 4), ("total-tail-forward", 3), ("planned", 4)]
)
def test_a_stopped_job_resumes_bit_for_bit_and_can_be_redone(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, name: str, stopped_at: int
) -> None:
    request = request_of(name)
    straight = engine.render(request, tmp_path / "straight.mp4")

    def stop(event: Any) -> None:
        if getattr(event, "step", None) == 1 and event.section == stopped_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.render(request, tmp_path / "v.mp4", job_dir=tmp_path / "job", on_event=stop)
    assert engine.resume(tmp_path / "job").path.read_bytes() == straight.path.read_bytes()
    JobFolder.open(tmp_path / "job").redo(3, seed=9)
    redone = engine.resume(tmp_path / "job", tmp_path / "redone.mp4")
    assert redone.path.read_bytes() != straight.path.read_bytes()


def test_a_video_says_its_schedule_and_is_reproduced(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    made = engine.render(request_of("k8"), tmp_path / "made.mp4")
    metadata = read_video_info(made.path).metadata
    assert metadata["sampling"]["schedule"] == metadata["request"]["schedule"] == SCHEDULES["k8"][0]
    recipe = Recipe.read(made.path)
    asked = recipe.request(EXAMPLES / "bounce.png", tmp_path)
    assert reproduce(engine, recipe, asked, tmp_path / "again.mp4").is_identical


@pytest.mark.parametrize(
    ("name", "direction"), [("averaged-tail", "forward"), ("total-tail", "backward")], ids=str
)
def test_a_video_is_extended_with_a_schedule(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, name: str, direction: str
) -> None:
    """The given frames are the nearest history of the first section."""
    made = engine.render(request_of("inverted", seconds=0.8), tmp_path / "made.mp4")
    extended = engine.render(
        request_of(name, image=None, video=made.path, direction=direction), tmp_path / "longer.mp4"
    )
    # What comes before a video begins with a start image of its own.
    assert extended.num_frames == made.num_frames + 48 + (direction == "backward")
    other = engine.render(
        request_of(name, image=None, video=made.path, direction=direction, seed=6), tmp_path / "other.mp4"
    )
    assert other.path.read_bytes() != extended.path.read_bytes()


def first_seen(sampling: SamplingConfig, **changes: Tensor) -> list[ContextGroup]:
    """What the first section sees of a start latent of one pixel, 5."""
    empty = torch.zeros(1, 1, 1)
    conditioning = Conditioning(
        text_embeds=empty, text_mask=empty[0].bool(), pooled_embeds=empty[0], image_embeds=empty,
        start_latent=torch.full((1, 1, 1, 1, 1), 5.0), **changes,
    )  # fmt: skip
    plans = plan_sections(sampling)
    return History.of_job(conditioning, sampling, plans, SampledSections()).groups(plans[0])


@pytest.mark.parametrize("num_given", [None, 2])
def test_a_codebook_moves_the_start_image_where_it_is_history_as_in_the_published_layout(
    tmp_path: Path, num_given: int | None
) -> None:
    save_codebook(tmp_path / "c", torch.tensor([[1.0], [4.0]]), [])
    changes = {} if num_given is None else {"given_latents": torch.ones(1, 1, num_given, 1, 1)}
    sampling = SamplingConfig(
        num_sections=2, order="forward", history_codebook=tmp_path / "c", allow_untrained=True
    )
    published = latents_of(first_seen(sampling, **changes))
    named = latents_of(first_seen(replace(sampling, schedule="f1k1_x_f2k2f1k1_g9"), **changes))
    assert torch.equal(named[1], published[1])
    assert torch.equal(named[2], published[2])
    assert published[1].flatten().tolist() == [5.0, 4.0 if num_given is None else 1.0]


@pytest.mark.parametrize(("num_given", "is_start_next"), [(18, True), (19, False)])
def test_the_start_of_a_given_video_is_seen_beside_its_frames_only_where_all_are_given(
    num_given: int, is_start_next: bool
) -> None:
    sampling = SamplingConfig(num_sections=2, order="forward", schedule="td_f24k4_g9", allow_untrained=True)
    (group,) = first_seen(sampling, given_latents=torch.ones(1, 1, num_given, 1, 1))
    expected = [0.0] * (23 - num_given) + [5.0 if is_start_next else 0.0] + [1.0] * num_given
    assert group.latents.flatten().tolist() == expected


def test_an_end_image_is_what_the_first_section_sees_next(
    engine: Engine, request_of: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[list[ContextGroup]]] = {}
    for use in ("first-section", "history"):
        with monkeypatch.context() as patch:
            seen[use] = watch_groups(patch)
            request = request_of(
                "inverted", end_image=EXAMPLES / "bounce.png", end_image_use=use, seconds=0.4
            )
            list(engine.generate(request))
    for first, second in seen.values():
        start, near = first[2].latents.unbind(2)
        assert torch.equal(start, near)
        assert not torch.equal(second[2].latents[:, :, 1], near)
    assert not seen["first-section"][1][1].latents[0, :, 1].any()
    assert torch.equal(seen["history"][1][1].latents[0, :, 1], seen["history"][0][2].latents[0, :, 1])


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"schedule": "f1k1_x_g9_f1k1f4k2"}, "needs allow_untrained=True .*only for f1k1_x_g9_f1k1f2k2f16k4_td"),
    ({"schedule": "f1k1_x_g4_f1k1f4k2"}, r"latent_window_size = 9 frames \(g9\), got g4 .*--window 4"),
    ({"schedule": "f1k1_x_g4_f1k1f2k2f16k4_td"}, "--window 4"),
    ({"schedule": "nonsense"}, "got 'nonsense' in 'nonsense'"),
    ({"schedule": 9}, "schedule must be text such as"),
    ({"schedule": "td_f16k4f4k2f1k1_g9"}, "order='inverted' must have frames right behind or beyond an x behind g9"),
    ({"schedule": "g9_f1k1", "order": "forward"}, "order='forward' must have frames right before g9"),
    ({"schedule": "td_f1k1_g9_x_f1k1", "order": "forward"}, "order 'endpoints' makes the end first"),
    ({"schedule": "f1k1_x_g9", "order": "inverted"}, "must have frames right behind"),
    ({"schedule": "g9_f1k1_x_f1k1_x_f1k1"}, "at most one x on each side"),
    ({"schedule": "g9_f1k1_x_f1k1"}, "no frames before the x"),
    ({"schedule": "td_f1k1_x_f1k1_g9", "order": "forward"}, "the tail of a schedule that runs"),
    ({"schedule": "f1k1_td_f1k1_g9", "order": "forward"}, "the tail of a schedule that runs"),
    (
        {"schedule": "g9_f1k1f4k2", "allow_untrained": True, "step_cache": "magcache"},
        "'magcache' has no ratios for schedule g9_f1k1f4k2",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSALS, ids=str)
def test_a_schedule_that_cannot_run_is_refused_at_once(changes: dict[str, Any], message: str) -> None:
    asked = {"order": "inverted"} | changes
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(num_sections=3, **asked)
    with pytest.raises(ConfigError, match=message):
        Request(image="", prompt="", **asked)


def test_a_guide_image_takes_the_place_of_one_frame() -> None:
    with pytest.raises(ConfigError, match="schedule must be text such as"):
        SamplingConfig(num_sections=3, schedule=9, guide_places=(1,))  # type: ignore[arg-type]  # refused
    with pytest.raises(
        ConfigError, match=r"need a schedule that begins with one frame, such as .*got g9_f1k1"
    ):
        SamplingConfig(num_sections=3, schedule="g9_f1k1", allow_untrained=True, guide_places=(1,))


def test_an_order_of_the_checkpoint_is_checked_when_it_is_known() -> None:
    request = Request(image="", prompt="", schedule="td_f16k4f4k2f1k1_g9", allow_untrained=True)
    assert request.sampling("forward").untrained_schedule == Schedule.parse("td_f16k4f4k2f1k1_g9")
    with pytest.raises(ConfigError, match="order='inverted'"):
        request.sampling("inverted")
    with pytest.raises(ConfigError, match="--window 4"):
        Request(image="", prompt="", schedule="td_f16k4f4k2f1k1_g4")


def test_a_single_frame_takes_no_schedule() -> None:
    with pytest.raises(ConfigError, match="target_index needs schedule=None"):
        SamplingConfig(
            num_sections=1, latent_window_size=1, target_index=3, schedule="g1_f1k1f4k2", allow_untrained=True
        )


def test_a_plan_is_made_for_the_schedule_that_is_allowed() -> None:
    command = [
        "plan", "--card", "RTX 3060", "--size", "640x608", "--json", "--schedule", "f1k1_x_g9_f8k1f2k2f16k4_td",
    ]  # fmt: skip

    def activations(*more: str) -> int:
        result = CliRunner().invoke(build_app(), [*command, *more])
        assert result.exit_code == 0, result.output
        phases = json.loads(result.stdout)["phases"]
        return int(next(phase for phase in phases if phase["name"] == "denoise")["activations"])

    assert activations("--allow-untrained") > activations()
    refused = CliRunner().invoke(build_app(), [*command, "--allow-untrained", "--order", "forward"])
    assert refused.exit_code == 2
    assert "right before g9" in " ".join(refused.stderr.split())


def test_generate_takes_a_schedule(tmp_path: Path) -> None:
    command = [
        "generate", str(EXAMPLES / "bounce.png"), "-p", "a red circle", "-o", str(tmp_path / "v.mp4"), "--seconds", "0.3",
        "--steps", "1", "--window", "1", "--schedule", "f1k1_x_g1_f1k1f4k2_tc", "--cache-dir", str(tmp_path), "--no-job",
        "--order", "inverted", "--device", "cpu",
    ]  # fmt: skip
    refused = CliRunner().invoke(build_app(), command)
    assert refused.exit_code == 2
    assert "needs allow_untrained=True (--allow-untrained)" in " ".join(refused.stderr.split())
    made = CliRunner().invoke(build_app(), [*command, "--allow-untrained"])
    assert made.exit_code == 0, made.output
    assert read_video_info(tmp_path / "v.mp4").metadata["sampling"]["schedule"] == "f1k1_x_g1_f1k1f4k2_tc"


def test_tail_frames_are_counted_as_the_longest_section_has_them() -> None:
    for text, order in (("ta_f16k4f2k2f1k1_g9", "forward"), ("f1k1_x_g9_f1k1f2k2_ta", "inverted")):
        for num_sections in (1, 2, 3, 4, 9, 30):
            config = SamplingConfig(
                num_sections=num_sections, order=order, schedule=text, allow_untrained=True
            )
            tails = [plan.seen.tail for plan in plan_sections(config)]
            longest = max(0 if tail is None else len(tail.frames) for tail in tails)
            assert longest == min(most_tail_frames(config, Schedule.parse(text)), 128)
