"""Prompts with times: parsed, snapped to sections, echoed in seconds, kept by jobs and files."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from isoframe.engine import (
    ConfigError,
    Engine,
    EngineConfig,
    InputError,
    JobEvent,
    PromptEmbeds,
    PromptSlot,
    PromptSpan,
    Request,
)
from isoframe.engine.interfaces.commands.terminal.progress import json_line, prompt_lines
from isoframe.engine.jobs.folder import JobFolder
from isoframe.engine.model.conditioning import blend_prompts
from isoframe.engine.request.guides import GuideImage
from isoframe.engine.request.prompts import parse_prompt, plan_prompts
from isoframe.engine.request.section_times import SectionTimes

# 4 sections of 1.2 s: 145 frames.
FOUR = {"num_sections": 4, "section_frames": 36, "fps": 30, "num_leading": 1}


def texts(prompt: str, *spans: PromptSpan, **changes: Any) -> list[str]:
    """The prompt of every section, in video order."""
    timeline = plan_prompts(prompt, spans, SectionTimes(**FOUR | changes))
    return [timeline.weights(section)[0][0] for section in range(timeline.num_sections)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a dog", ["a dog"] * 4),
        ("[0s] a [2.5s] b", ["a", "a", "b", "b"]),
        ("base [0s] a [2.5s: 3.5s] b", ["base a", "base a", "base b", "base a"]),
        ("base [1.2s-2.4s] b", ["base", "base b", "base", "base"]),
        ("[2.4s] b [0s] a", ["a", "a", "b", "b"]),
        ("[ 0 s ] a [.9s : 5s] b", ["a", "b", "b", "b"]),
        ("a [3] and [x]", ["a [3] and [x]"] * 4),
    ],
)
def test_times_snap_to_sections_and_the_base_text_is_carried(prompt: str, expected: list[str]) -> None:
    assert texts(prompt) == expected


def test_spans_as_a_list_equal_the_notation() -> None:
    spans = PromptSpan(text="a", start=0), PromptSpan(text="b", start=2.5, end=3.5)
    assert texts("base", *spans) == texts("base [0s] a [2.5s: 3.5s] b")
    assert parse_prompt("base [0s] a [2.5s: 3.5s] b") == ("base", spans)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("[0s: 3s] a [2s] b", r"\[0s: 3s\] 'a' and \[2s\] 'b' overlap from 2 s to 3 s"),
        ("[1s] a [1s: 2s] b x [0s] c", r"overlap from 1 s to 2 s"),
        ("[0s] a [7s] b", r"\[7s\] 'b' lies outside of the video, which ends at 4.83 s"),
        ("[0s] a [2s: 9s] b", r"\[2s: 9s\] 'b' lies outside of the video"),
        ("[0s] a [3s: 2s] b", "must have an end after its start"),
        ("[2.4s] b", "no prompt is in force from 0.00 s to 2.43 s"),
        (
            "[0s] a [2.5s: 2.7s] b",
            "too short: sections of this video have 1.20 s, the nearest one is from 2.43 s",
        ),
        ("[0s] a [2s:4] b", r"must be \[2.5s\] or \[2.5s: 4s\] with the text after it, got '\[2s:4\]'"),
        ("[1s: she waves]", r"got '\[1s: she waves\]'"),
    ],
)
def test_wrong_times_are_named(prompt: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Request(image="x.png", prompt=prompt)


def test_times_in_both_places_and_a_negative_blend_are_refused() -> None:
    with pytest.raises(ConfigError, match="prompt_spans must be empty"):
        Request(image="x.png", prompt="[0s] a", prompt_spans=(PromptSpan(text="b", start=0),))
    with pytest.raises(ConfigError, match="prompt_blend must be"):
        Request(image="x.png", prompt="a", prompt_blend=-1.0)


@settings(deadline=None)
@given(
    starts=st.lists(st.integers(1, 19), unique=True, max_size=6),
    blend=st.floats(0, 30),
    num_sections=st.integers(20, 40),
)
def test_shares_of_every_section_sum_to_one_and_a_blend_of_zero_is_pure(
    starts: list[int], blend: float, num_sections: int
) -> None:
    spans = [PromptSpan(text=str(start), start=start) for start in starts]
    timeline = plan_prompts(
        "[0s] first" if not spans else "base", spans,
        SectionTimes(num_sections=num_sections, section_frames=30, fps=30, num_leading=1), blend_seconds=blend,
    )  # fmt: skip
    for section in range(num_sections):
        shares = [share for _, share in timeline.weights(section)]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) > 0
        assert len(shares) == 1 or blend > 0


def test_a_blend_weighs_prompts_by_their_distance() -> None:
    timeline = plan_prompts("[0s] a [2.4s] b", (), SectionTimes(**FOUR), blend_seconds=3.6)
    shares = [dict(timeline.weights(section)).get("b", 0.0) for section in range(4)]
    assert shares == pytest.approx([0, 1 / 3, 2 / 3, 1])


def test_blended_embeddings_are_the_weighted_mean_and_end_with_the_longer_text() -> None:
    short, long = (
        PromptEmbeds(
            text_embeds=torch.full((1, length, 2), float(length)),
            text_mask=torch.ones(1, length, dtype=torch.bool),
            pooled_embeds=torch.full((1, 3), float(length)),
        )
        for length in (2, 4)
    )
    blended = blend_prompts([(short, 0.25), (long, 0.75)])
    assert blended.text_embeds[0, :, 0].tolist() == [3.5, 3.5, 3.0, 3.0]
    assert blended.text_mask.shape == (1, 4)
    assert blended.pooled_embeds[0].tolist() == [3.5] * 3
    assert blend_prompts([(long, 1.0)]) is long


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load("demo", config=EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu"))


@pytest.fixture
def request_of(tmp_path: Path) -> Callable[..., Request]:
    """A job of 4 sections of 4 frames."""
    path = tmp_path / "start.png"
    Image.new("RGB", (64, 64), (200, 60, 40)).save(path)

    def make(prompt: str, **changes: Any) -> Request:
        fields: dict[str, Any] = {"seconds": 16 / 30, "num_steps": 2, "latent_window_size": 1, "seed": 5}
        return Request(image=path, prompt=prompt, **fields | changes)

    return make


def latents_by_place(engine: Engine, request: Request) -> dict[int, torch.Tensor]:
    sections = list(engine.generate(request))
    order = range(len(sections)) if request.order == "forward" else reversed(range(len(sections)))
    return {place: sections[i].latents for i, place in enumerate(order)}


@pytest.mark.parametrize("kind", ["image", "text alone", "forward", "backward"])
def test_told_times_and_the_plan_count_the_frames_that_are_there(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path, kind: str
) -> None:
    request = request_of("[0s] a [0.3s] b", latent_window_size=2, num_steps=1)
    if kind != "image":
        request = replace(request, image=None)
    if kind in ("forward", "backward"):
        clip = engine.render(replace(request, size=(64, 64)), tmp_path / "clip.mp4").path
        request = replace(request, video=clip, direction=kind)
    events: list[Any] = []
    next(engine.generate(request, on_event=events.append))
    job = next(event for event in events if isinstance(event, JobEvent))
    made = job.num_frames - job.num_given_frames
    assert made == 16 + {"image": 1, "text alone": -3, "forward": 0, "backward": 1}[kind]
    assert [slot.start_seconds for slot in job.prompts] == pytest.approx([0, (made - 8) / 30])
    assert [slot.end_seconds for slot in job.prompts] == pytest.approx([(made - 8) / 30, made / 30])
    assert request.section_seconds(1) == job.prompts[1].start_seconds
    assert engine.plan(request).num_frames == job.num_frames


def test_without_a_start_image_times_snap_to_earlier_borders(request_of: Callable[..., Request]) -> None:
    """Sections of 8 frames meet at 9 and 17 with a start image, at 5 and 13 without one."""
    spun = GuideImage(image="spin.png", time=9.2 / 30)
    request = request_of("[0s] a [0.31s] b", latent_window_size=2, seconds=0.8, guide_images=(spun,))
    alone = replace(
        request, image=None, guide_images=(replace(spun, time=8.9 / 30),), prompt="[0s] a [0.44s] b"
    )
    later = replace(alone, guide_images=(replace(spun, time=9.1 / 30),))
    assert (request.guide_places, alone.guide_places, later.guide_places) == ((1,), (1,), (2,))
    assert [timeline.stretches[1].first_section for timeline in (request.prompt_timeline(), alone.prompt_timeline())] == [
        1, 2,
    ]  # fmt: skip


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_a_section_depends_on_its_own_prompt_and_those_made_before(
    engine: Engine, request_of: Callable[..., Request], order: str
) -> None:
    plain = latents_by_place(engine, request_of("a red circle", order=order))
    timed = latents_by_place(engine, request_of("a red circle [0.26s] a blue square", order=order))
    same = {place for place in plain if torch.equal(plain[place], timed[place])}
    # Forward the first half comes first and does not know of the change; inverted the changed half comes first.
    assert same == ({0, 1} if order == "forward" else set())
    tail = latents_by_place(engine, request_of("a red circle [0s: 0.26s] a blue square", order=order))
    assert {place for place in plain if torch.equal(plain[place], tail[place])} == (
        set() if order == "forward" else {2, 3}
    )


def test_one_prompt_with_a_time_is_the_plain_job_bit_for_bit(
    engine: Engine, request_of: Callable[..., Request]
) -> None:
    plain, timed = (latents_by_place(engine, request_of(text)) for text in ("a dog", "[0s] a dog"))
    assert all(torch.equal(plain[place], timed[place]) for place in plain)


@pytest.mark.parametrize(("order", "made"), [("inverted", ((3, 2), (1, 0))), ("forward", ((0, 1), (2, 3)))])
def test_the_timeline_is_echoed_in_seconds_of_video_in_both_orders(
    engine: Engine, request_of: Callable[..., Request], order: str, made: tuple[tuple[int, int], ...]
) -> None:
    events: list[Any] = []
    sections = engine.generate(request_of("x [0s] a [0.27s] b", order=order), on_event=events.append)
    next(sections)
    sections.close()
    job = events[0]
    assert isinstance(job, JobEvent)
    assert job.prompts == (
        PromptSlot(text="x a", start_seconds=0.0, end_seconds=9 / 30, sections=made[0]),
        PromptSlot(text="x b", start_seconds=9 / 30, end_seconds=17 / 30, sections=made[1]),
    )
    first, second = (", ".join(str(section + 1) for section in sections) for sections in made)
    assert prompt_lines(job)[1:] == [
        f"  0.0-0.3 s (section {first}): x a",
        f"  0.3-0.6 s (section {second}): x b",
    ]
    assert '"prompts": [{"text": "x a", "start_seconds": 0.0' in json_line(job)


def test_a_job_with_a_timeline_resumes_to_the_same_bits_and_its_file_tells_it(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    request = request_of("x", prompt_spans=(PromptSpan(text="a", start=0.27),), prompt_blend=0.2)
    straight = engine.render(request, tmp_path / "straight.mp4")
    assert [entry["text"] for entry in straight.metadata["prompts"]] == ["x", "x a"]

    def stop(event: Any) -> None:
        if getattr(event, "section", 0) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.render(request, tmp_path / "video.mp4", job_dir=tmp_path / "job", on_event=stop)
    assert JobFolder.open(tmp_path / "job").record.request.prompt_spans == request.prompt_spans
    assert engine.resume(tmp_path / "job").path.read_bytes() == straight.path.read_bytes()
    with pytest.raises(InputError, match="another job, with prompt"):
        engine.render(request_of("x"), tmp_path / "other.mp4", job_dir=tmp_path / "job")


def test_a_redo_takes_times_of_its_own_and_refuses_wrong_ones(
    engine: Engine, request_of: Callable[..., Request], tmp_path: Path
) -> None:
    engine.render(request_of("[0s] a [0.27s] b"), tmp_path / "video.mp4", job_dir=tmp_path / "job")
    folder = JobFolder.open(tmp_path / "job")
    with pytest.raises(ConfigError, match="lies outside of the video"):
        folder.redo(2, prompt="[0s] c [9s] d")
    folder.redo(2, prompt="c [0.13s] d")
    expected = latents_by_place(engine, request_of("[0s] c [0.13s: 0.27s] c d [0.27s] b"))
    engine.resume(tmp_path / "job", tmp_path / "redone.mp4")
    from safetensors.torch import load_file

    redone = load_file(tmp_path / "job" / "section_0003.safetensors")["latents"]
    assert torch.equal(redone, expected[0])
