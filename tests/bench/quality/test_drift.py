"""Drift is none for the truth and is seen where a video gets worse; options are compared with the exact path."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from isoframe.bench.commands import app
from isoframe.bench.quality import printed_results as quality_views
from isoframe.bench.quality.clip_scores import draw_frames, generate_frames, held_out_scene
from isoframe.bench.quality.drift import (
    MEASURES,
    distances_to_truth,
    drift,
    measure_drift,
    restart,
    without_history,
)
from isoframe.bench.quality.option_errors import OPTIONS, Option, Sample, compare_samples, make_sample
from isoframe.bench.quality.world import Scene
from isoframe.bench.records.rows import read_rows
from isoframe.engine import Engine, EngineConfig, Request
from isoframe.engine.request.config import ATTENTIONS, PRECISIONS, STEP_CACHES

NUM_FRAMES = 60


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load("demo", config=EngineConfig(device="cpu"))


def test_the_truth_does_not_drift() -> None:
    result = measure_drift(lambda scene: draw_frames(scene, NUM_FRAMES), name="truth", num_pairs=4)
    assert set(result.drifts) == set(MEASURES)
    assert max(max(values) for values in result.drifts.values()) < 0.01
    assert (result.num_frames, len(result.pictured)) == (NUM_FRAMES, 4)


def darker(frames: Tensor) -> Tensor:
    fading = torch.linspace(1, 0.5, len(frames)).view(-1, 1, 1, 1)
    return (frames.float() * fading).to(torch.uint8)


def softer(frames: Tensor) -> Tensor:
    half = len(frames) // 2
    soft = torch.nn.functional.avg_pool2d(frames[half:].float().movedim(3, 1), 5, 1, 2).movedim(1, 3)
    return torch.cat((frames[:half], soft.to(torch.uint8)))


def standing(frames: Tensor) -> Tensor:
    half = len(frames) // 2
    return torch.cat((frames[:half], frames[half : half + 1].expand(len(frames) - half, -1, -1, -1)))


def flickering(frames: Tensor) -> Tensor:
    spoilt = frames.clone()
    spoilt[len(frames) // 2 :: 2] = (spoilt[len(frames) // 2 :: 2].float() * 0.95).to(torch.uint8)
    return spoilt


@pytest.mark.parametrize(
    ("spoil", "measure"),
    [
        (flickering, "flow"),
        (darker, "colour"),
        (softer, "sharpness"),
        (standing, "change"),
        (standing, "position"),
    ],
)
def test_what_gets_worse_is_seen_in_its_measure(spoil: Any, measure: str) -> None:
    def make(scene: Scene) -> Tensor:
        return spoil(draw_frames(scene, NUM_FRAMES))

    values = measure_drift(make, name="spoilt", num_pairs=4).drifts[measure]
    assert max(values) > 0.05


def test_drift_is_the_difference_of_end_and_beginning() -> None:
    assert drift(torch.arange(100.0)) == pytest.approx(85)
    assert drift(torch.ones(50)) == 0


def test_distances_of_the_truth_are_zero() -> None:
    scene = held_out_scene(2)
    distances = distances_to_truth(draw_frames(scene, 20), scene)
    assert all(float(values.abs().max()) < 0.05 for values in distances.values())


def test_controls_make_whole_videos_that_differ_from_the_models(engine: Engine) -> None:
    scene = held_out_scene(1)
    normal = generate_frames(engine, scene, seconds=2.4, order="forward", num_steps=2)
    forgetful = without_history(engine, scene, seconds=2.4, num_steps=2)
    again = generate_frames(engine, scene, seconds=2.4, order="forward", num_steps=2)
    assert normal.shape == forgetful.shape == (73, 64, 64, 3)
    assert not torch.equal(normal, forgetful)
    # The control leaves nothing behind.
    assert torch.equal(normal, again)
    assert restart(engine, scene, seconds=2.4, num_steps=2).shape == (73, 64, 64, 3)


def sample(offset: int, share: float = 1.0) -> Sample:
    latents = tuple(torch.full((1, 1, 2, 2, 2), float(index + offset)) for index in range(3))
    frames = (torch.arange(25).view(-1, 1, 1, 1) + offset).expand(-1, 16, 16, 3).to(torch.uint8)
    return Sample(latents=latents, frames=frames, computed_share=share)


@pytest.mark.parametrize("is_inverted", [False, True])
def test_the_first_section_is_compared_with_its_own_frames(is_inverted: bool) -> None:
    spoilt = sample(0)
    spoilt.frames[(-1 if is_inverted else 0)] += 50
    first = compare_samples(spoilt, sample(0), 1, is_inverted=is_inverted)
    other = compare_samples(spoilt, sample(0), 1, is_inverted=not is_inverted)
    assert first["psnr"] < 50 < other["psnr"] == 200
    assert compare_samples(spoilt, sample(0), 3, is_inverted=is_inverted)["psnr"] < 60


def test_an_option_that_changes_nothing_has_no_error() -> None:
    assert compare_samples(sample(0), sample(0), 3, is_inverted=False) == {
        "sqnr": 200, "psnr": 200, "ssim": pytest.approx(1)
    }  # fmt: skip


def test_a_sample_tells_its_skipped_steps(engine: Engine) -> None:
    request = Request(
        image=draw_frames(held_out_scene(0), 1)[0].numpy(), prompt="a red circle", seconds=1.2, num_steps=6
    )
    exact = make_sample(engine, request)
    assert exact.computed_share == 1
    assert (len(exact.latents), exact.frames.shape) == (1, (37, 64, 64, 3))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["quality", "--pairs", "1", "--steps", "2", *map(str, arguments)])


def test_errors_of_options_are_printed_pictured_and_stored(tmp_path: Path) -> None:
    result = run(
        "--what",
        "errors",
        "--option",
        "int8-weight",
        "--seconds",
        1.2,
        "--sheet",
        tmp_path,
        "--json",
        tmp_path / "r",
    )
    assert result.exit_code == 0, result.output
    assert "int8-weight" in result.stdout
    rows = {row.case: row for row in read_rows(tmp_path / "r")}
    assert set(rows) == {"option-error-sqnr", "option-error-psnr", "option-error-ssim"}
    assert 20 < rows["option-error-sqnr"].median < 80
    assert rows["option-error-sqnr"].precision == "int8-weight"
    assert (tmp_path / "options.png").stat().st_size > 1000


def test_orders_and_options_are_held_against_the_truth_in_one_table(tmp_path: Path) -> None:
    result = run(
        "--order", "endpoints", "--order", "forward", "--option", "magcache-0.24", "--option", "teacache-0.25",
        "--seconds", 2.4, "--steps", 8, "--no-baselines", "--sheet", tmp_path, "--json", tmp_path / "r",
    )  # fmt: skip
    assert result.exit_code in (0, 1), result.output
    lines = [line.split()[:4] for line in result.stdout.splitlines()[1:]]
    assert [line[0] for line in lines] == ["endpoints"] * 3 + ["forward"] * 3
    assert lines[0][1:] == ["1", "73", "100%"]
    assert "endpoints magcache-0.24    does not run: step_cache 'magcache' has no ratios" in result.stdout
    shares = {row.variant: row.median for row in read_rows(tmp_path / "r") if row.case.endswith("share")}
    assert shares["forward"] == 1
    assert shares["forward teacache-0.25"] < 1 > shares["forward magcache-0.24"]
    # Truth and as many videos, 9 pictures each.
    with Image.open(tmp_path / "demo_endpoints.png") as sheet:
        assert sheet.size == (2 * 9 * 66, 2 * 3 * 66)
    with Image.open(tmp_path / "demo_forward.png") as sheet:
        assert sheet.size == (2 * 9 * 66, 2 * 4 * 66)


def test_a_schedule_is_held_against_the_truth_under_its_name(tmp_path: Path) -> None:
    schedule = "f1k1_x_g9_f1k1f4k2_tc"
    arguments = ("--seconds", 1.2, "--no-baselines", "--json", tmp_path / "r")
    for more in ((), ("--schedule", schedule)):
        assert run("--order", "inverted", *arguments, *more).exit_code in (0, 1)
    psnr = {row.variant: row.median for row in read_rows(tmp_path / "r") if row.case == "quality-psnr"}
    assert psnr.keys() == {"inverted", f"inverted {schedule}"}
    assert psnr["inverted"] != psnr[f"inverted {schedule}"]


def test_an_option_that_does_not_run_here_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"xformers": Option(config={"attention": "xformers"})}
    monkeypatch.setattr("isoframe.bench.quality.option_errors.OPTIONS", options)
    monkeypatch.setattr(quality_views, "OPTIONS", options)
    result = run("--what", "errors", "--seconds", 1.2)
    assert "xformers             does not run here" in result.stdout


def test_drift_is_printed_and_stored_for_every_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made = {"truth": lambda scene: draw_frames(scene, NUM_FRAMES)}
    monkeypatch.setattr(quality_views, "ways", lambda engine, **_: made)
    result = run("--what", "drift", "--sheet", tmp_path, "--json", tmp_path / "rows.jsonl")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("truth          sharpness 0.00")
    assert {row.case for row in read_rows(tmp_path / "rows.jsonl")} == {f"drift-{name}" for name in MEASURES}
    assert (tmp_path / "drift_truth.png").exists()


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [(("--what", "errros"), "'errors'"), (("--what", "errors", "--option", "int9"), "'int8'")],
)
def test_unknown_names_suggest_the_nearest(arguments: tuple[str, ...], hint: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert f"did you mean {hint}?" in result.stderr


def test_every_precision_attention_and_step_cache_that_is_not_the_exact_path_is_an_option() -> None:
    configs = [dict(option.config) for option in OPTIONS.values()]
    assert {config["precision"] for config in configs if "precision" in config} == {*PRECISIONS} - {"fp32"}
    attentions = {config["attention"] for config in configs if "attention" in config}
    assert attentions == {*ATTENTIONS} - {"auto", "sdpa"}
    caches = {option.request["step_cache"] for option in OPTIONS.values() if option.request}
    assert caches == {*STEP_CACHES} - {"none"}
