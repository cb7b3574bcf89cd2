"""What ``bench quality --what truth`` measures, and that it refuses before it measures."""

import json
from pathlib import Path

import pytest

from isoframe.bench.quality.printed_results import QualityView, TruthView
from isoframe.engine import ConfigError

FUTURE_ALONE = "f1k1_x_g9_f1k1f2k2"


@pytest.fixture
def truth(tmp_path: Path) -> TruthView:
    """One short video an order, with a schedule that order "inverted" alone can have."""
    view = QualityView(pairs=1, steps=1, sheet=None, json_file=tmp_path / "rows.jsonl")
    return TruthView(view, seconds=1.2, history_codebook=None, schedule=FUTURE_ALONE)


def test_a_schedule_that_one_order_cannot_have_is_refused_before_any_order_is_measured(
    truth: TruthView, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="schedule with order='forward' must have frames right before"):
        truth.show(["inverted", "forward"], [], has_baselines=False)
    assert capsys.readouterr().out == ""


def test_the_order_that_can_have_a_schedule_is_measured_and_kept(
    truth: TruthView, capsys: pytest.CaptureFixture[str]
) -> None:
    truth.show(["inverted"], [], has_baselines=False)
    assert f"inverted {FUTURE_ALONE}" in capsys.readouterr().out
    assert truth.view.json_file is not None
    rows = [json.loads(line) for line in truth.view.json_file.read_text().splitlines()]
    assert {row["variant"] for row in rows} == {f"inverted {FUTURE_ALONE}"}
