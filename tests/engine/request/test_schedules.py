"""The paper's notation: parsed, printed, counted; the published ones are the engine's own layouts."""

import itertools
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seen_groups import positions_of
from typer.testing import CliRunner

from isoframe.engine import ConfigError, SamplingConfig
from isoframe.engine.families.framepack.model_sizes import published_shapes
from isoframe.engine.families.framepack.step_sizes import packed_sequence
from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.request.schedule import KERNELS, Generated, Level, Schedule, published_schedule
from isoframe.engine.request.sections import plan_sections

LEVELS = st.lists(
    st.builds(Level, st.integers(1, 40), st.sampled_from(sorted(KERNELS))), min_size=1, max_size=5
).map(lambda levels: "".join(map(str, levels)))
TAILS = st.sampled_from(["td", "ta", "tc"])
# Vanilla, inverted, with an endpoint, symmetric, important start.
TEXTS = st.one_of(
    st.builds("{}_{}_g9".format, TAILS, LEVELS),
    st.builds("f1k1_x_g9_{}_{}".format, LEVELS, TAILS),
    st.builds("{}_{}_g4_x_f1k1".format, TAILS, LEVELS),
    st.builds("{}_g9_{}".format, LEVELS, LEVELS),
    st.builds("f1k1_x_{}_{}_g2".format, TAILS, LEVELS),
)
SIZES = st.tuples(st.integers(2, 160), st.integers(2, 160))


@given(TEXTS)
def test_a_schedule_prints_as_it_was_written(text: str) -> None:
    assert str(Schedule.parse(text)) == text
    assert Schedule.parse(str(Schedule.parse(text))) == Schedule.parse(text)


def test_full_names_of_kernels_are_the_short_ones() -> None:
    assert str(Schedule.parse("f1k1h2w2_x_g9_f16k4h8w8f8k8h16w16_td")) == "f1k1_x_g9_f16k4f8k8_td"


@settings(deadline=None)
@given(TEXTS, SIZES, st.integers(0, 100_000))
def test_tokens_stay_inside_the_bound_at_any_length(
    text: str, size: tuple[int, int], num_frames: int
) -> None:
    schedule = Schedule.parse(text)
    tail_frames = max(num_frames - schedule.history_frames, 0)
    used = schedule.num_noisy_tokens(size) + schedule.num_context_tokens(size, tail_frames)
    assert used <= schedule.bound(size)
    without_tail = schedule.num_noisy_tokens(size) + schedule.num_context_tokens(size)
    if schedule.tail == "ta":
        kept = min(tail_frames, 128)
        assert used == without_tail + -(-kept // schedule.tail_kernel)
    else:
        assert used == without_tail == schedule.bound(size)


@given(TEXTS, st.integers(0, 60))
def test_positions_follow_each_other_and_only_gaps_leave_some_out(text: str, gap: int) -> None:
    schedule = Schedule.parse(text)
    ranges = [places for _, places in schedule.layout(gap)]
    skipped = [b.start - a.stop for a, b in itertools.pairwise(ranges)]
    assert ranges[0].start == 0
    assert sorted(skipped, reverse=True)[: text.count("x")] == [gap] * text.count("x")
    assert sum(skipped) == gap * text.count("x")


@pytest.mark.parametrize("window", [1, 4, 9, 33])
@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_the_published_schedules_are_the_sections_that_run(order: str, window: int) -> None:
    schedule = published_schedule(order, window)
    for section in plan_sections(SamplingConfig(num_sections=6, order=order, latent_window_size=window)):
        layout = schedule.layout(section.latent_padding * window)
        by_kernel: dict[int, tuple[int, ...]] = {}
        for part, places in layout:
            if isinstance(part, Generated):
                assert places == section.latent_indices
            else:
                by_kernel[part.kernel] = (*by_kernel.get(part.kernel, ()), *places)
        assert by_kernel == positions_of(section)


@pytest.mark.parametrize("size", [(640, 608), (416, 960), (64, 64), (1280, 720)])
def test_tokens_are_those_that_the_planner_counts(size: tuple[int, int]) -> None:
    schedule, (height, width) = published_schedule("inverted", 9), (size[0] // 8, size[1] // 8)
    sequence = packed_sequence(published_shapes().transformer, size, schedule, vision=0, text=0)
    frame = ceil(height / 2) * ceil(width / 2)
    assert sequence.noisy == 9 * frame
    # Start latent and one frame; two frames at half, sixteen at a quarter of the resolution.
    far = ceil(height / 4) * ceil(width / 4) + 4 * ceil(height / 8) * ceil(width / 8)
    assert sequence.clean == 2 * frame + far
    assert schedule.bound((height, width)) == sequence.latent


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("f1k1", "must generate once, such as g9, got f1k1"),
        ("g9_g9", "must generate once"),
        ("f1k3_g9", "must be k1, k2, k4 or k8, got k3"),
        ("f1k2h2w2_g9", "must be k2h4w4, got 'f1k2h2w2'"),
        ("td_f1k1_g9_f1k1_td", "at most one tail"),
        ("f1k1_td_g9", "at the far end of its history"),
        ("td_g9", "at the far end of its history"),
        ("x_f1k1_g9", "x in a schedule must lie between frames"),
        ("f1k1_g0", "at least 1, got 0"),
        ("f1k1-g9", "got 'f1k1-g9' in 'f1k1-g9'"),
        ("", "got '' in ''"),
    ],
)
def test_what_is_no_schedule_is_named(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule.parse(text)


def test_plan_shows_the_tokens_of_schedules_and_their_bound() -> None:
    command = ["plan", "--card", "RTX 3060", "--size", "640x608", "--schedule", "td_f16k4f4k2f1k1_g9_x_f1k1"]
    result = CliRunner().invoke(build_app(), [*command, "--schedule", "ta_f1k1_g9"])
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if "tokens" in line]
    assert any("f1k1_x_g9_f1k1f2k2f16k4_td" in line and "13680 + 3820 = 17500" in line for line in lines)
    assert any("td_f16k4f4k2f1k1_g9_x_f1k1" in line and "13680 + 4200 = 17880" in line for line in lines)
    # One frame at kernel 1, then at most 128 tail frames one by one.
    assert any("ta_f1k1_g9" in line and "at most 15328" in line for line in lines)
