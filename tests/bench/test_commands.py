"""``isoframe bench``: arguments, limits and rows. The measurement itself is a fake."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from isoframe.bench.commands import app
from isoframe.bench.peers import peer_step as forward
from isoframe.bench.peers.in_turn import PeerResult
from isoframe.bench.peers.peer_step import ForwardCase


@pytest.fixture(autouse=True)
def ratios(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Ratio per case that the fake measurement returns; 0.5 where none is set."""
    ratios: dict[str, float] = {}

    def compare(case: ForwardCase, repeats: int) -> PeerResult:
        ratio = ratios.get(case.name, 0.5)
        return PeerResult(
            error=1e-7,
            diffusers_times=(0.2,) * repeats,
            isoframe_times=(0.2 * ratio,) * repeats,
        )

    monkeypatch.setattr(forward, "compare_steps", compare)
    return ratios


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_forward_runs_every_case() -> None:
    result = run("forward")
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(forward.CASES)


def test_missed_limit_is_exit_1(ratios: dict[str, float]) -> None:
    ratios["demo-fp32"] = 0.9
    result = run("forward", "--case", "demo-fp32")
    assert result.exit_code == 1
    assert "ratio 0.900 (limit 0.85: MISSED" in result.stdout


def test_unknown_case_suggests_the_nearest() -> None:
    result = run("forward", "--case", "demo-fp23")
    assert result.exit_code == 2
    assert "did you mean 'demo-fp32'?" in result.stderr


def test_json_rows_carry_gate_and_environment(tmp_path: Path) -> None:
    assert run("forward", "--case", "demo-fp32", "--json", tmp_path / "rows.jsonl").exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["variant"], row["unit"], row["median"]) for row in rows] == [
        ("diffusers", "s", 0.2), ("isoframe", "s", 0.1), ("isoframe/diffusers", "ratio", 0.5),
    ]  # fmt: skip
    assert rows[0]["values"] == [0.2] * 20
    assert rows[0]["shape"] == [184, 25]
    assert rows[0]["gate"] == {"is_green": True, "text": "relative error 1.00e-07 <= 1e-05"}
    assert rows[0]["environment"]["num_cores"] >= 1
