"""``isoframe bench peers``: both sides agree before they are timed, and the ratio comes with its spread."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from isoframe.bench.commands import app
from isoframe.bench.peers import peer_section as peers
from isoframe.bench.peers import peer_video as peers_pipeline
from isoframe.bench.peers.in_turn import PeerResult
from isoframe.bench.peers.peer_section import compare_sections
from isoframe.bench.peers.peer_video import compare_pipelines
from isoframe.bench.records.rows import read_rows
from isoframe.engine import IsoframeError, Request
from isoframe.engine.demo import find_example

CPU = torch.device("cpu")


def compare(**changes: Any) -> PeerResult:
    arguments: dict[str, Any] = {
        "device": CPU, "precision": "fp32", "size": (32, 48), "num_steps": 2, "repeats": 2
    }  # fmt: skip
    return compare_sections("demo", **(arguments | changes))


@pytest.mark.parametrize(("precision", "error"), [("fp32", 1e-5), ("bf16", 0.05)])
def test_both_denoise_the_same_section(precision: str, error: float) -> None:
    assert compare(precision=precision).error <= error


def test_sections_are_timed_in_turn() -> None:
    # Every reading of the clock is 1, 2, 3, ... seconds after the one before.
    ticks = itertools.accumulate(itertools.count(1))
    result = compare(clock=lambda: float(next(ticks)))
    assert result.diffusers_times == (2.0, 6.0)
    assert result.isoframe_times == (4.0, 8.0)


def test_sections_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers.MAX_ERRORS, "fp32", 0.0)
    with pytest.raises(IsoframeError, match=r"demo in fp32: the latents .* differ by .*nothing was timed"):
        compare()


def test_ratio_has_an_interval_and_a_spread() -> None:
    result = PeerResult(error=0.0, diffusers_times=(2.0, 4.0, 3.0), isoframe_times=(1.0, 3.0, 1.5))
    assert result.ratio == 0.5
    assert result.spread == (0.5, 0.75)
    low, high = result.interval
    assert low < 0.5 < high


def test_command_stores_both_and_their_ratio(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = PeerResult(error=1e-6, diffusers_times=(2.0, 2.2), isoframe_times=(1.0, 1.1))
    monkeypatch.setattr(peers, "compare_sections", lambda model, **_: result)
    path = tmp_path / "rows.jsonl"
    shown = CliRunner().invoke(app, ["peers", "--device", "cpu", "--json", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "diffusers 2.1 s/section  isoframe 1.05 s/section  ratio 0.500 (95 % 0.4" in shown.stdout
    rows = {row.variant: row for row in read_rows(path)}
    assert rows["diffusers"].values == (2.0, 2.2)
    assert rows["isoframe/diffusers"].median == 0.5
    assert rows["isoframe"].gate.text == "relative RMS of the latents 1.00e-06 <= 1e-03"


REQUEST = Request(
    image=str(find_example(None)[0]), prompt=find_example(None)[1], seconds=0.5, size=(64, 64), order="inverted",
    num_steps=2, latent_window_size=2, sampler="euler",
)  # fmt: skip
siglip = pytest.mark.filterwarnings("ignore:.*SiglipImageProcessor.*")


@siglip
@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_whole_videos_of_both_are_the_same_frames(order: str) -> None:
    request = dataclasses.replace(REQUEST, order=order)
    ticks = itertools.accumulate(itertools.count(1))
    result = compare_pipelines(
        "demo", request, device=CPU, precision="fp32", repeats=2, clock=lambda: float(next(ticks))
    )
    assert result.error < 0.01
    assert (result.diffusers_times, result.isoframe_times) == ((2.0, 6.0), (4.0, 8.0))


@siglip
def test_videos_that_differ_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(peers_pipeline.MAX_FRAME_ERRORS, "fp32", 0.0)
    with pytest.raises(IsoframeError, match=r"the frames \(17, 64, 64, 3\) .* differ by .*nothing was timed"):
        compare_pipelines("demo", REQUEST, device=CPU, precision="fp32", repeats=1)


def test_offloading_needs_a_cuda_device() -> None:
    shown = CliRunner().invoke(app, ["peers", "--what", "pipeline", "--offload", "--device", "cpu"])
    assert (shown.exit_code, "--offload moves weights to a CUDA device" in shown.stderr) == (2, True)


def test_videos_are_stored_with_what_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = PeerResult(error=1e-3, diffusers_times=(8.0, 9.0), isoframe_times=(4.0, 4.5))
    monkeypatch.setattr(peers_pipeline, "compare_pipelines", lambda *_, **__: result)
    path = tmp_path / "rows.jsonl"
    shown = CliRunner().invoke(
        app, ["peers", "--what", "pipeline", "--order", "inverted", "--device", "cpu", "--json", str(path)]
    )
    assert "diffusers 8.5 s/video  isoframe 4.25 s/video  ratio 0.500" in shown.stdout
    row = read_rows(path)[1]
    assert (row.case, row.unit, row.settings["order"], row.settings["offload"]) == (
        "peers-video", "s/video", "inverted", "none"
    )  # fmt: skip


def test_precision_without_a_peer_is_refused() -> None:
    result = CliRunner().invoke(app, ["peers", "--precision", "fp8"])
    assert result.exit_code == 2
    assert "--precision must be one of fp32, bf16" in result.stderr
