"""What the app shows, without a page."""

import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from video_server import KeptWorkers, load

from isoframe.bench.quality.codebook_fit import save_codebook
from isoframe.engine import ConfigError, Engine, InputError, Request
from isoframe.engine.demo import find_example, list_examples
from isoframe.engine.interfaces.app.drawings import (
    MemorySample,
    SectionBar,
    compose_strip,
    draw_memory,
    draw_progress,
    draw_sections,
)
from isoframe.engine.interfaces.app.form import Form
from isoframe.engine.interfaces.app.shown_files import ShownFiles
from isoframe.engine.interfaces.app.studio import QUALITIES, Studio
from isoframe.engine.interfaces.server.videos.errors import NotFinishedError
from isoframe.engine.interfaces.server.videos.service import VideoService
from isoframe.engine.jobs.record import JobRecord
from isoframe.engine.jobs.run import Redo
from isoframe.engine.media.video import read_video_info


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(tmp_path_factory.mktemp("cache")) as engine:
        yield engine


@pytest.fixture(scope="module")
def studio(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    with VideoService(KeptWorkers(engine), tmp_path_factory.mktemp("data")) as service:
        studio = Studio(service, engine, ShownFiles(tmp_path_factory.mktemp("shown")))
        yield studio
        studio.close()


def form(**changes: object) -> Form:
    image, prompt = find_example(None)
    values: dict[str, object] = {
        "image": str(image), "prompt": prompt, "seconds": 2.4, "seed": 5, "num_steps": 2, "step_cache": "none",
        "guidance_scale": 10.0, "order": "auto",
    }  # fmt: skip
    return Form(**{**values, **changes})  # type: ignore[arg-type]  # values of its fields


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "image must be given"),
        ({"prompt": "  "}, "prompt must say what happens"),
        ({"prompt": None}, "prompt must say what happens"),
        ({"seconds": -1}, "seconds must be a positive number"),
        ({"seconds": None}, "seconds must be a number, the field is empty"),
        ({"seconds": 500}, "seconds must be at most 120, got 500"),
        ({"guidance_scale": None}, "guidance_scale must be a number, the field is empty"),
        ({"seed": None}, "seed must be a number, the field is empty"),
        ({"num_steps": None}, "num_steps must be a number, the field is empty"),
        (
            {"guide_images": ["a.png", "b.png"], "guide_times": "1.2"},
            "a time for each of the 2 guide images, such as",
        ),
        ({"guide_times": "1.2"}, "a time for each of the 0 guide images, such as 2.4, 4.8, got '1.2'"),
        (
            {"guide_images": ["a.png"], "guide_times": "soon"},
            "guide_times must be seconds such as 2.4, 4.8, got 'soon'",
        ),
        ({"guide_images": ["a.png"], "guide_times": "9"}, "guide_images must have times inside the video"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_made(
    studio: Studio, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        studio.create(form(**changes))
    assert message in studio.describe_plan(form(**changes))


def test_the_plan_tells_whether_a_video_fits_and_follows_the_budget(studio: Studio) -> None:
    assert studio.describe_plan(form()).startswith("Fits: 0.")
    assert "73 frames in 2 sections, about " in studio.describe_plan(form())
    assert re.search(r"1 section, .* s per frame, \d+ s on CPU$", studio.describe_plan(form(seconds=1.2)))
    before = studio._engine.machine.ram
    assert studio.set_budget("", "90MiB") == "90 MiB of RAM"
    assert studio.describe_plan(form()).startswith("Does not fit: ")
    with pytest.raises(ConfigError, match="ram must be a positive size"):
        studio.set_budget("", "much")
    with pytest.raises(ConfigError, match="vram must be left out on device 'cpu'"):
        studio.set_budget("6GiB", "")
    studio.set_budget("", str(before))
    assert studio.describe_plan(form()).startswith("Fits: 0.")


@pytest.mark.parametrize(("order", "numbers"), [("inverted", [2, 1]), ("forward", [1, 2])])
def test_sections_and_previews_stand_in_video_time(studio: Studio, order: str, numbers: list[int]) -> None:
    status = studio.create(form(order=order))
    studio.service.wait(status.id)
    status = studio.service.get(status.id)
    bars = studio.sections(status)
    assert [bar.number for bar in bars] == numbers
    assert [(bar.start, bar.end, bar.state) for bar in bars] == [(0, 1.2, "done"), (1.2, 2.4, "done")]
    drawn = draw_sections(bars, order=order)
    assert drawn.count('class="done"') == 2
    assert ("the end is made first" in drawn) == (order == "inverted")
    assert "in the order of the numbers" in draw_sections(bars, order="endpoints")
    strip = studio.strip(status)
    assert strip is not None
    folder = studio.service.folder(status.id).path / "previews"
    parts = [compose_strip(folder, [(number - 1, 9)], 9) for number in numbers]
    assert strip.size == (12 * 64, 64)
    assert all(part is not None and part.size == (9 * 64, 64) for part in parts)
    assert studio.describe(status) == "Done: 73 frames, 2.4 s"
    assert studio.video(status) == studio.service.video_path(status.id)
    assert studio.gallery()[0].id == status.id
    assert studio.facts(status)["request"]["seed"] == 5  # type: ignore[index]  # JSON


def test_text_alone_makes_a_video_that_the_gallery_shows_by_its_first_frame(studio: Studio) -> None:
    assert "; 33 frames in 1 section," in studio.describe_plan(form(is_text_alone=True, seconds=1.2))
    status = studio.create(form(is_text_alone=True, seconds=1.2))
    studio.service.wait(status.id)
    status = studio.service.get(status.id)
    assert studio.describe(status).startswith("Done: 33 frames, 1.1 s; text-to-video: ")
    assert not (studio.service.folder(status.id).path / "image.png").exists()
    with av.open(str(studio.service.video_path(status.id))) as container:
        first = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.array_equal(np.asarray(Image.open(studio.thumbnail(status))), first)
    again = studio.reproduce(status.id)
    studio.service.wait(again.id)
    assert "the same file, bit for bit" in studio.describe(studio.service.get(again.id))


def test_a_video_of_one_frame_has_a_thumbnail_and_one_whose_files_are_damaged_is_grey(studio: Studio) -> None:
    request = form(is_text_alone=True).to_request()
    status = studio.service.create(replace(request, seconds=0.1, latent_window_size=1))
    studio.service.wait(status.id)
    status = studio.service.get(status.id)
    assert status.num_frames == 1
    thumbnail = studio.thumbnail(status)
    assert isinstance(thumbnail, str)
    with Image.open(thumbnail) as picture:
        assert picture.size == (status.width, status.height)
    (studio.service.folder(status.id).path / "thumbnail.png").unlink()
    studio.service.video_path(status.id).write_bytes(b"no video")
    assert isinstance(studio.thumbnail(status), Image.Image)


def test_times_of_prompts_and_guides_are_told_where_they_snapped_to(studio: Studio) -> None:
    (one, _), (two, _) = list_examples()[:2]
    asked = form(
        prompt="a circle [0s] bounces [2s] spins",
        guide_images=[two, one],
        guide_times="2.5 s, 1",
        seconds=3.6,
    )
    assert studio.describe_plan(asked).endswith("; prompts change at 2.43 s; guide images at 1.23, 2.43 s")
    assert [guide.image for guide in asked.to_request().guide_images] == [one, two]
    status = studio.create(asked)
    studio.service.wait(status.id)
    assert studio.facts(status)["sampling"]["guide_places"] == [1, 2]  # type: ignore[index]  # JSON


def test_a_damaged_image_is_told_by_its_name_and_not_by_where_the_app_keeps_it(
    studio: Studio, tmp_path: Path
) -> None:
    image = tmp_path / "cat.png"
    image.write_text("no picture")
    told = studio.describe_plan(form(image=str(image)))
    assert told.startswith("image cat.png is damaged or in none of the formats")
    with pytest.raises(InputError, match="is damaged") as raised:
        studio.create(form(image=str(image)))
    assert str(tmp_path) not in told + str(raised.value)


def test_the_form_of_a_video_asks_for_the_same_once_more(studio: Studio) -> None:
    (one, _), (two, _) = list_examples()[:2]
    asked = form(
        prompt="a circle [0s] bounces [2s] spins", seconds=3.6, order="inverted", num_steps=3, seed=11,
        step_cache="magcache", end_image=two, end_image_strength=0.5, guide_images=[one], guide_times="2.5",
    )  # fmt: skip
    status = studio.create(asked)
    studio.service.cancel(status.id)
    filled = studio.form(status.id)
    assert [Path(path).name for path in (filled.image, filled.end_image) if path] == [
        "image.png",
        "end_image.png",
    ]
    files = dict.fromkeys(("image", "end_image", "guide_images"))
    assert replace(filled, **files) == replace(asked, loras=[], **files)
    assert len(filled.guide_images or ()) == 1
    assert studio.describe_plan(filled) == studio.describe_plan(asked)


def test_a_redo_draws_its_seed_unless_a_seed_or_a_prompt_is_given(studio: Studio) -> None:
    status = studio.create(form())
    studio.service.wait(status.id)

    def redone(**changes: str) -> Redo:
        made = studio.redo(status.id, 2, **changes)
        studio.service.wait(made.id)
        return studio.service.folder(made.id).redos[0]

    first, second = redone(), redone()
    assert first.seed is not None
    assert second.seed not in (None, first.seed)
    assert redone(seed=" 7 ") == Redo(section=1, seed=7, prompt=None)
    assert redone(prompt="it stops") == Redo(section=1, seed=None, prompt="it stops")
    kept = studio.service.get(studio.gallery()[0].id)
    assert studio.title(kept).endswith("(2.4 s, seed 5, redone from section 2: it stops)")
    assert studio.caption(kept).startswith("redone, 2.4 s, ")
    assert studio.title(status) == f"{status.prompt} (2.4 s, seed 5)"
    with pytest.raises(ConfigError, match="seed must be a whole number, got 'new'"):
        studio.redo(status.id, 2, seed="new")


def test_a_page_that_is_refreshed_reads_no_record_of_a_job(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = studio.create(form())
    studio.service.wait(status.id)
    reads: list[object] = []
    monkeypatch.setattr(JobRecord, "from_json", lambda *args: reads.append(args))
    for shown in studio.gallery():
        studio.thumbnail(shown)
        studio.caption(shown)
    status = studio.service.get(status.id)
    assert len(studio.sections(status)) == 2
    assert studio.strip(status) is not None
    assert studio.video(status) is not None
    assert "Done" in studio.describe(status)
    assert reads == []


def test_what_was_stopped_stays_in_the_gallery_with_what_it_was_asked_for(studio: Studio) -> None:
    status = studio.create(form(seconds=60, is_text_alone=True))
    assert status.id not in [kept.id for kept in studio.gallery()]
    studio.service.pause(status.id)
    studio.service.wait(status.id)
    kept = studio.gallery()[0]
    assert (kept.id, kept.state) == (status.id, "paused")
    assert studio.caption(kept).startswith("paused, 59.9 s, ")
    assert isinstance(studio.thumbnail(kept), Image.Image)
    with pytest.raises(ConfigError, match="only a video that waits can be moved, this one is paused"):
        studio.move(status.id, is_to_front=True)
    assert studio.facts(kept)["seed"] == 5
    studio.delete(status.id)
    assert status.id not in [kept.id for kept in studio.gallery()]


def test_what_was_played_meanwhile_goes_when_the_video_is_done(studio: Studio) -> None:
    status = studio.create(form(seconds=6, num_steps=4))
    while (played := studio.video(studio.service.get(status.id))) is None:
        studio.service.wait(status.id, 0.05)
    assert played.name.startswith("finished_")
    studio.service.wait(status.id)
    status = studio.service.get(status.id)
    assert studio.video(status) == studio.service.video_path(status.id)
    assert list(studio.service.folder(status.id).path.glob("finished_*")) == []


def test_pages_reach_a_file_by_one_name_until_it_is_gone(tmp_path: Path) -> None:
    (tmp_path / "shown" / "old").mkdir(parents=True)
    shown, path = ShownFiles(tmp_path / "shown", seconds_kept=0), tmp_path / "video.mp4"
    assert list((tmp_path / "shown").iterdir()) == []
    path.write_bytes(b"one")
    first = shown.show(path)
    assert shown.show(path) == first
    assert (first.read_bytes(), first.name) == (b"one", "video.mp4")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        shown.show(path)
    path.write_bytes(b"other")
    second = shown.show(path)
    assert (second != first, second.read_bytes()) == (True, b"other")
    path.unlink()
    (tmp_path / "last.png").write_bytes(b"last")
    shown.show(tmp_path / "last.png")
    assert not second.exists()


def test_some_sections_of_a_long_video_are_numbered() -> None:
    bars = [SectionBar(number=50 - i, start=1.2 * i, end=1.2 * (i + 1), state="waiting") for i in range(50)]
    numbers = re.findall(r">(\d+)</text>", draw_sections(bars, order="inverted"))
    assert numbers == [str(number) for number in range(50, 0, -2)]


def test_no_preview_is_drawn_before_the_first_step(tmp_path: Path) -> None:
    assert compose_strip(tmp_path, [(0, 9), (1, 9)], 9) is None


def test_the_strip_stands_over_its_sections_and_tells_given_frames_from_those_to_come(tmp_path: Path) -> None:
    Image.new("RGB", (9 * 8, 8), "red").save(tmp_path / "section_000.png")
    strip = compose_strip(tmp_path, [(None, 18), (1, 9), (0, 9)], 9)
    assert strip is not None
    colours = [strip.getpixel((64 * i + 32, 32)) for i in range(12)]
    assert colours == [(63, 111, 181)] * 6 + [(185, 192, 200)] * 3 + [(255, 0, 0)] * 3


def test_every_quality_sets_steps_and_step_cache() -> None:
    assert {tuple(options) for options in QUALITIES.values()} == {("num_steps", "step_cache")}
    assert QUALITIES["final"]["step_cache"] == "none"


def test_drawings_tell_memory_and_progress_and_escape_what_they_are_given() -> None:
    samples = [MemorySample(seconds=i, ram_bytes=i * 2**20, device_bytes=2**30) for i in range(1, 4)]
    assert "RAM 3 MiB, GPU 1024 MiB (last 2 s)" in draw_memory(samples)
    assert draw_memory(samples[:1]) == ""
    assert 'aria-valuenow="50"' in draw_progress(0.5, "half")
    assert "&lt;b&gt;" in draw_progress(2, "<b>")
    assert 'aria-valuenow="100"' in draw_progress(2, "")


@pytest.mark.parametrize("is_before", [False, True])
def test_a_longer_video_holds_all_frames_of_the_shorter_one(studio: Studio, is_before: bool) -> None:
    short = studio.create(form(seconds=1.2))
    studio.service.wait(short.id)
    longer = studio.extend(short.id, 1.2, is_before=is_before)
    assert studio.service.wait(longer.id).state == "done"
    status = studio.service.get(longer.id)
    assert status.num_frames == read_video_info(studio.service.video_path(longer.id)).num_frames >= 37 + 36
    bars = studio.sections(status)
    assert [bar.state for bar in bars] == (["done", "given"] if is_before else ["given", "done"])
    assert max(bar.end for bar in bars) == pytest.approx((status.num_frames - 1) / 30)
    assert studio.strip(status) is not None
    # It needs nothing of the shorter one any more.
    studio.delete(short.id)
    again = studio.reproduce(longer.id)
    assert studio.service.wait(again.id).state == "done"


@pytest.mark.parametrize("is_before", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"order": "forward", "schedule": "td_f16k4f4k2f1k1_g1"},
        {"order": "inverted", "schedule": "f1k1_x_g1_f1k1f2k2"},
        {"order": "custom", "section_order": (1, 0, 2)},
    ],
    ids=["a schedule of the past", "a schedule of the future", "an order of one's own"],
)
def test_a_longer_video_has_the_published_history_whatever_the_shorter_one_had(
    studio: Studio, tmp_path: Path, changes: dict[str, object], is_before: bool
) -> None:
    codebook = tmp_path / "codebook.safetensors"
    save_codebook(codebook, torch.randn(4, 16), ["random numbers"])
    image, prompt = find_example(None)
    values: dict[str, Any] = {
        "seconds": 0.4,
        "num_steps": 1,
        "latent_window_size": 1,
        "allow_untrained": True,
        **changes,
    }
    request = Request(image=image, prompt=prompt, history_codebook=codebook, **values)
    short = studio.service.create(request)
    assert studio.service.wait(short.id).state == "done"
    longer = studio.extend(short.id, 0.4, is_before=is_before)
    assert studio.service.wait(longer.id).state == "done"
    made = studio.service.folder(longer.id).record.request
    assert made.order == ("inverted" if is_before else "forward")
    assert (made.schedule, made.section_order, made.history_codebook) == (None, None, None)


def test_only_a_finished_video_can_be_made_longer(studio: Studio) -> None:
    status = studio.create(form(seconds=60))
    with pytest.raises(NotFinishedError, match="its file is there when it is done"):
        studio.extend(status.id, 1.2, is_before=False)
    studio.service.cancel(status.id)
    studio.service.wait(status.id)


def test_a_damaged_video_is_in_the_gallery_with_its_reason(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "jobs" / "video_0123456789abcdef01234567").mkdir(parents=True)
    (tmp_path / "jobs" / "video_0123456789abcdef01234567" / "job.json").write_text("{")
    with (
        VideoService(KeptWorkers(engine), tmp_path) as service,
        closing(Studio(service, engine, ShownFiles(tmp_path / "shown"))) as studio,
    ):
        (status,) = studio.gallery()
        assert "job.json" in studio.describe(status)
        assert studio.caption(status).startswith("failed")
        assert studio.thumbnail(status) is not None
        assert "seed" in studio.title(status)
        for look in (studio.sections, studio.strip, studio.video, studio.facts):
            with pytest.raises(InputError, match=r"job\.json"):
                look(status)
        for act in (studio.form, studio.reproduce):
            with pytest.raises(InputError, match=r"job\.json"):
                act(status.id)
        studio.delete(status.id)
        assert studio.gallery() == []
