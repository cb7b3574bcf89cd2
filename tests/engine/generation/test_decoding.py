"""The parts of a job one by one: conditioning, latents, frames."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from isoframe.engine import Engine, EngineConfig, InputError, Request
from isoframe.engine.companions.components import DEMO_FOLDER

SIZE = {"num_steps": 2, "latent_window_size": 2, "seconds": 0.5}


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_the_parts_one_by_one_give_the_frames_of_the_whole(tmp_path: Path, order: str) -> None:
    options: dict[str, Any] = SIZE | {"order": order, "cfg_scale": 2.0, "negative_prompt": "a star"}
    request = Request(
        image=DEMO_FOLDER.parent / "examples" / "bounce.png", prompt="a red circle bounces", **options
    )
    with Engine.load("demo", config=EngineConfig(device="cpu", cache_dir=tmp_path)) as engine:
        whole = list(engine.generate(request))
        conditioning = engine.condition(request)
        latents = engine.sample_video(conditioning, request.sampling(order))
        parts = list(engine.decode(latents, order=order, latent_window_size=2))
        assert [part.first_frame for part in parts] == [section.first_frame for section in whole]
        for part, section in zip(parts, whole, strict=True):
            assert torch.equal(part.frames, section.frames)
        longer = dataclasses.replace(request.sampling(order), num_sections=3)
        assert engine.sample_video(conditioning, longer).shape[2] == 7
        with pytest.raises(InputError, match=r"must have 1 \+ n \* 3 frames for a window of 3, got 5"):
            engine.decode(latents, latent_window_size=3)
        with pytest.raises(InputError, match="latents must be"):
            engine.decode(latents[0])
