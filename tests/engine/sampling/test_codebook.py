"""History discretisation: centroids fitted, the history moved to them, told by jobs and files."""

from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from seen_groups import latents_of, watch_groups
from typer.testing import CliRunner

from isoframe.bench.quality.codebook_fit import read_points, save_codebook
from isoframe.bench.quality.command import codebook as codebook_command
from isoframe.engine import ConfigError, Engine, EngineConfig, InputError, Request, SamplingConfig
from isoframe.engine.reproduction import Recipe, reproduce
from isoframe.engine.request.sections import plan_sections
from isoframe.engine.sampling.codebook import Codebook
from isoframe.engine.sampling.history import History

BOUNCE = Path(__file__).parents[3] / "examples" / "bounce.png"


def test_the_history_moves_to_its_nearest_centroids_and_start_and_empty_frames_stay() -> None:
    codebook = Codebook(centroids=torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]]), content_hash="")
    plans = plan_sections(SamplingConfig(num_sections=2))
    start, latents = torch.randn(1, 2, 1, 3, 4), torch.randn(1, 2, 9, 3, 4)
    history = History(start, plans, codebook=codebook)
    history.append(plans[0], latents)
    seen = latents_of(history.groups(plans[1]))
    assert torch.equal(seen[1][:, :, :1], start)
    assert not seen[4][:, :, 6:].any()
    for given, moved in (
        (latents[:, :, :1], seen[1][:, :, 1:]),
        (latents[:, :, 1:3], seen[2]),
        (latents[:, :, 3:], seen[4][:, :, :6]),
    ):
        distances = (given[:, :, None] - codebook.centroids.T[None, :, :, None, None, None]).square().sum(1)
        assert torch.equal(moved, codebook.centroids[distances.argmin(1)].movedim(-1, 1))
    with pytest.raises(InputError, match="must have 3 channels, got 2"):
        codebook.snap(torch.ones(1, 3, 2, 1, 1))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load("demo", config=EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu"))


def test_a_job_with_a_codebook_sees_centroids_and_is_resumed_and_reproduced(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def request_of(**changes: Any) -> Request:
        fields: dict[str, Any] = {
            "image": BOUNCE, "prompt": "a red circle", "seconds": 0.4, "num_steps": 2, "latent_window_size": 1,
        }  # fmt: skip
        return Request(**fields | changes)

    engine.render(request_of(), tmp_path / "plain.mp4", latents_path=tmp_path / "plain.safetensors")
    app = typer.Typer()
    app.command()(codebook_command)
    result = CliRunner().invoke(
        app, [str(tmp_path / "plain.safetensors"), "--centroids", "9", "-o", str(tmp_path / "c.safetensors")]
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "9 centroids of 256 latent pixels" in result.output.replace("\n", " ")
    seen = watch_groups(monkeypatch)
    request = request_of(history_codebook=tmp_path / "c.safetensors", allow_untrained=True)
    straight = engine.render(request, tmp_path / "straight.mp4")
    centroids = Codebook.load(tmp_path / "c.safetensors").centroids
    near = [latents_of(groups)[1][:, :, 1:] for groups in seen[1:]]
    pixels = torch.cat(near, dim=2).movedim(1, -1).reshape(-1, 16)
    assert (pixels[:, None] == centroids).all(dim=2).any(dim=1).all()
    assert straight.path.read_bytes() != (tmp_path / "plain.mp4").read_bytes()

    def stop(event: Any) -> None:
        if getattr(event, "section", 0) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.render(request, tmp_path / "v.mp4", job_dir=tmp_path / "job", on_event=stop)
    assert engine.resume(tmp_path / "job").num_frames == straight.num_frames
    assert str(tmp_path) not in str(straight.metadata)
    recipe = Recipe.read(straight.path)
    assert reproduce(engine, recipe, recipe.request(BOUNCE, tmp_path), tmp_path / "a.mp4").is_identical
    save_codebook(tmp_path / "c.safetensors", centroids + 1, [])
    with pytest.raises(InputError, match=r"codebook .* is not the one"):
        recipe.request(BOUNCE, tmp_path)


def test_files_that_are_no_codebook_or_latents_are_refused(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="is no codebook"):
        engine.generate(
            Request(
                image=BOUNCE, prompt="", history_codebook=tmp_path / "x.safetensors", allow_untrained=True
            )
        )
    with pytest.raises(InputError, match="holds no latents of isoframe"):
        read_points([tmp_path / "x.safetensors"])
    with pytest.raises(ConfigError, match="history_codebook needs allow_untrained=True"):
        Request(image=BOUNCE, prompt="", history_codebook="x")
