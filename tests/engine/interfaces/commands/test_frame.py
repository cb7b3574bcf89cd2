"""One picture at any place: where the model believes it to be, and what comes out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from seen_groups import latents_of, positions_of
from typer.testing import CliRunner

from isoframe.engine import ConfigError, Engine, EngineConfig, InputError, Request, SamplingConfig
from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.media.video import read_video_info
from isoframe.engine.model.packing import ContextGroup, Indices
from isoframe.engine.reproduction import Recipe
from isoframe.engine.request.sections import plan_sections

BOUNCE = Path(__file__).parents[4] / "examples" / "bounce.png"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load("demo", config=EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu"))


@pytest.mark.parametrize("index", [1, 2, 9, 100])
def test_the_frame_stands_at_its_index_between_the_image_and_an_empty_future(index: int) -> None:
    (plan,) = plan_sections(SamplingConfig(num_sections=1, latent_window_size=1, target_index=index))
    assert plan.latent_indices == range(index, index + 1)
    far = tuple(range(index + 4, index + 20))
    assert positions_of(plan) == {1: (0, index + 1), 2: (index + 2, index + 3), 4: far}


def test_the_picture_is_the_decoded_frame_at_that_index(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[list[ContextGroup], Indices]] = []
    pack = PackedTransformer.pack_section

    def spy(self: PackedTransformer, groups: list[ContextGroup], latent: Indices, size: Any) -> Any:
        seen.append((groups, latent))
        return pack(self, groups, latent, size)

    monkeypatch.setattr(PackedTransformer, "pack_section", spy)
    request = Request(image=BOUNCE, prompt="a red circle bounces", num_steps=3, seconds=9.0)
    path = engine.render_frame(request, tmp_path / "deep" / "a.png", target_index=9)
    ((groups, latent),) = seen
    assert (list(latent), groups[-1].indices) == ([9], (0, 10))
    assert not latents_of(groups)[4].any()
    metadata = read_video_info(path).metadata
    assert metadata["sampling"]["target_index"] == 9
    pixels = np.asarray(Image.open(path))
    assert pixels.shape == (64, 64, 3)
    assert pixels.std() > 5
    other = engine.render_frame(request, tmp_path / "b.png", target_index=2)
    assert not np.array_equal(pixels, np.asarray(Image.open(other)))
    again = engine.render_frame(request, tmp_path / "c.png", target_index=9)
    assert np.array_equal(pixels, np.asarray(Image.open(again)))
    with pytest.raises(InputError, match="is a single frame"):
        Recipe.read(path)
    with pytest.raises(InputError, match="exists"):
        engine.render_frame(request, path, target_index=1)
    with pytest.raises(InputError, match=r"must end in .png"):
        engine.render_frame(request, tmp_path / "a.mp4", target_index=1)


def test_an_index_that_cannot_be_is_refused() -> None:
    with pytest.raises(ConfigError, match="target_index must be an integer of at least 1, got 0"):
        SamplingConfig(num_sections=1, latent_window_size=1, target_index=0)
    with pytest.raises(ConfigError, match="target_index needs num_sections=1, latent_window_size=1"):
        SamplingConfig(num_sections=1, target_index=3)


def test_the_command_writes_a_picture(tmp_path: Path) -> None:
    command = [
        "frame",
        str(BOUNCE),
        "-p",
        "a red circle",
        "--steps",
        "1",
        "--index",
        "3",
        "-o",
        str(tmp_path / "f.png"),
    ]
    command += ["--device", "cpu", "--cache-dir", str(tmp_path / "cache")]
    result = CliRunner().invoke(build_app(), command)
    assert result.exit_code == 0, result.output
    assert torch.tensor(np.asarray(Image.open(tmp_path / "f.png"))).shape == (64, 64, 3)
