"""``isoframe bench peers``: both sides agree before they are timed, and the ratio comes with its spread."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from isoframe.bench import peers
from isoframe.bench.commands import app
from isoframe.bench.peers import PeerResult, compare_sections
from isoframe.bench.rows import read_rows
from isoframe.engine import IsoframeError

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
    with pytest.raises(IsoframeError, match=r"demo in fp32: the latents differ by .*nothing was timed"):
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


def test_precision_without_a_peer_is_refused() -> None:
    result = CliRunner().invoke(app, ["peers", "--precision", "fp8"])
    assert result.exit_code == 2
    assert "--precision must be one of fp32, bf16" in result.stderr
