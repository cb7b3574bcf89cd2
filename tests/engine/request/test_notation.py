"""What a request says that would do nothing is refused or told, at every door; values may come from other libraries."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isoframe.engine import ConfigError, EngineConfig, GuideImage, LoraStrength, Request
from isoframe.engine.request.codec import to_dict
from isoframe.engine.request.prompts import PromptSpan
from isoframe.engine.request.sampling_config import SamplingConfig


def asked(**fields: Any) -> Request:
    return Request(**{"image": "start.png", "prompt": "a dog"} | fields)


FOREIGN = (
    "<lora:x:0.8>", "a <LoRA:style>", "<lyco:x:1>", "embedding:bad_hands", "(word:1.3)", "a (red dog: .9) runs", "((dog))", "{{dog}}",
    "[0 sec] a", "[2.4] b", "[0-2s: text]", "[0:02] b", "[0S: 2S] a [1 second] b", "[00:01.5] b", "[1,5s] a", "[2 s to 4 s] b", "[at 2s] b",
    "[t=2] b", "[50%] b", "[30 frames] b", "[12f] b", "[0 \u2013 2 s] a", "[cat:dog:0.5]", "[dog:10]", "[1 min] b", "[500ms] b",
)  # fmt: skip
TEXT = (
    "a dog (with a hat) at 10:30", "a 16:9 picture (ratio 16:9)", "[a dog] runs", "a sign saying (open: daily)", "5 < 6 and 7 > 3",
    "[3d render] of a [2-year-old child]", "[5 dogs] run", "he says: (hello)", "", "50% off", "{dog} and ((", "[0s] a [1.3s: 2.5s] b",
)  # fmt: skip


@pytest.mark.parametrize("prompt", FOREIGN)
def test_notation_of_other_programs_is_refused_naming_ours_or_kept_as_text(prompt: str) -> None:
    with pytest.raises(ConfigError, match=r"^(a time in )?prompt (has|must be) .*\[2.5s: 4s\]"):
        asked(prompt=prompt)
    with pytest.raises(ConfigError, match="negative_prompt has "):
        asked(negative_prompt=prompt, cfg_scale=2.0)


@pytest.mark.parametrize("prompt", ["a (word:1.3)", "[0 sec] a", "<lora:x:0.8>"])
def test_forced_notation_is_text_and_told(prompt: str) -> None:
    request = asked(prompt=prompt, force=True)
    assert request.prompt_timeline().stretches[0].text == prompt
    (note,) = request.notes()
    assert "is read as text: times are written [2.5s]" in note


@pytest.mark.parametrize("prompt", TEXT)
def test_plain_text_and_our_times_are_neither_refused_nor_told(prompt: str) -> None:
    assert asked(prompt=prompt).notes() == ()


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"negative_prompt": "blurry"},
            "negative_prompt 'blurry' is ignored: it needs cfg_scale other than 1",
        ),
        ({"cfg_rescale": 0.5}, "cfg_rescale 0.5 is ignored: it needs cfg_scale"),
        ({"end_image_strength": 0.5}, "end_image_strength 0.5 is ignored: it needs an end_image or loop"),
        ({"end_image_use": "history"}, "end_image_use 'history' is ignored"),
        ({"direction": "backward"}, "direction 'backward' is ignored: it needs a video (--extend)"),
        ({"step_cache_threshold": 0.3}, "step_cache_threshold 0.3 is ignored: it needs a step_cache"),
        ({"step_cache_max_skips": 2, "step_cache": "teacache"}, "step_cache_max_skips 2 is ignored"),
        ({"step_cache_retention": 0.4}, "step_cache_retention 0.4 is ignored"),
        ({"prompt_blend": 1.0}, "prompt_blend 1.0 is ignored: it needs prompts with times"),
        ({"posterior": "mode", "image": None}, "posterior 'mode' is ignored"),
    ],
    ids=str,
)
def test_an_option_that_does_nothing_is_told(fields: dict[str, Any], told: str) -> None:
    (note,) = asked(**fields).notes()
    assert note.startswith(told)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"negative_prompt": "blurry", "cfg_scale": 2.0, "cfg_rescale": 0.5},
        {"end_image": "end.png", "end_image_strength": 0.5, "end_image_use": "history"},
        {"loop": True, "end_image_strength": 0.5},
        {"video": "a.mp4", "image": None, "direction": "backward", "posterior": "mode"},
        {"step_cache": "magcache", "step_cache_threshold": 0.1, "step_cache_max_skips": 2},
        {"prompt": "[0s] a [2.4s] b", "prompt_blend": 1.0},
    ],
    ids=str,
)
def test_an_option_at_work_is_not_told(fields: dict[str, Any]) -> None:
    assert asked(**fields).notes() == ()


@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "must be text, got NoneType"),
        (["a"], "must be text, got list"),
        (b"a", "must be text, got bytes"),
        (5, "must be text, got int"),
        (os.fsdecode(b"a \xff"), r"must be UTF-8, got '\\udcff' at character 3"),
        ("\ud800", "must be UTF-8"),
    ],
    ids=str,
)
def test_a_prompt_that_is_no_text_is_refused_with_its_name(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{field} {message}"):
        asked(**{field: value})


def test_a_prompt_with_a_time_that_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^prompt_spans must be UTF-8"):
        asked(prompt_spans=(PromptSpan(text="\ud800", start=0.0),))


def test_numbers_of_numpy_are_numbers_and_become_pythons_own() -> None:
    request = asked(
        seconds=np.float32(2.5), seed=np.int64(7), num_steps=np.uint8(9), cfg_scale=np.float64(2), size=(np.int32(64), np.int64(64)),
        fps=np.int16(24), prompt_blend=np.int32(0), guide_images=(GuideImage(image="a.png", time=np.float32(1.2)),),
        loras=(LoraStrength(source="a", strength=np.float16(0.5), sections=(np.int64(0),)),),
    )  # fmt: skip
    assert (request.seed, request.num_steps, request.size, request.fps) == (7, 9, (64, 64), 24)
    assert request.loras[0].sections == (0,)
    assert json.loads(json.dumps(to_dict(request)))["seconds"] == 2.5
    sampling = SamplingConfig(num_sections=np.int64(2), num_steps=np.int64(3))
    assert json.dumps(to_dict(sampling))
    assert asked(seconds=np.int64(3)).seconds == 3
    with pytest.raises(ConfigError, match="num_steps must be an integer"):
        asked(num_steps=np.float32(2.5))
    with pytest.raises(ConfigError, match="seconds must be a positive number"):
        asked(seconds=np.float32("nan"))


def test_the_home_folder_is_meant_in_every_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    request = asked(
        image="~/a.png", end_image=Path("~/b.png"), loras=(LoraStrength(source="~/c.safetensors"),)
    )
    assert request.image == "/home/somebody/a.png"
    assert request.end_image == Path("/home/somebody/b.png")
    assert request.loras[0].source == "/home/somebody/c.safetensors"
    assert asked(video="~/d.mp4", image=None).video == "/home/somebody/d.mp4"
    assert GuideImage(image="~/e.png", time=1.0).image == "/home/somebody/e.png"
    assert asked(history_codebook="~/f", allow_untrained=True).history_codebook == "/home/somebody/f"
    assert EngineConfig(cache_dir="~/cache").cache_path() == Path("/home/somebody/cache")
    assert asked(image="a~b.png").image == "a~b.png"
