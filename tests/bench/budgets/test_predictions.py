"""``isoframe bench predict``: every card of the table, labelled as predicted."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from isoframe.bench.budgets.card_predictions import predict
from isoframe.bench.commands import app
from isoframe.bench.records.results_page import render
from isoframe.bench.records.rows import read_rows
from isoframe.engine.planning.machine import cards


def test_every_card_is_predicted_inside_its_memory_and_faster_in_int8() -> None:
    found = {
        (one.card, one.precision): one.plan for one in predict(("bf16", "int8"), size=(640, 608), ram="48GiB")
    }
    assert {card for card, _ in found} == set(cards())
    for card in cards():
        in_bf16, in_int8 = found[card, "bf16"], found[card, "int8"]
        assert in_int8.seconds_per_frame < in_bf16.seconds_per_frame
        assert in_bf16.peak <= 0.9 * cards()[card].memory_bytes


def test_what_does_not_fit_is_left_out() -> None:
    assert list(predict(("bf16",), size=(640, 608), ram="1MiB")) == []


def test_rows_say_that_nothing_was_run(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    result = CliRunner().invoke(app, ["predict", "--precision", "int8", "--json", str(path)])
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == len(cards())
    rows = read_rows(path)
    assert {row.basis for row in rows} == {"predicted"}
    assert {row.gate.text.partition(":")[0] for row in rows} == {"nothing ran"}
    page = render(rows)
    assert f"Here: 0 rows measured, {len(rows)} rows predicted" in page
    assert "| RTX 4090 | int8 | " in page


@pytest.mark.parametrize("size", ["640", "641x608"])
def test_a_bad_size_is_refused(size: str) -> None:
    assert CliRunner().invoke(app, ["predict", "--size", size]).exit_code == 2
