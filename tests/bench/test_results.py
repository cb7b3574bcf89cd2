"""``docs/benchmarks.md`` is what the committed results say, and says how each figure came about."""

from dataclasses import replace
from pathlib import Path

import pytest
from bench_rows import ENVIRONMENT, ROW
from typer.testing import CliRunner

from isoframe.bench.commands import app
from isoframe.bench.records.results_page import render
from isoframe.bench.records.rows import BenchRow, Gate

ROOT = Path(__file__).resolve().parents[2]


def make_row(
    case: str, variant: str, values: tuple[float, ...], unit: str = "s", **settings: object
) -> BenchRow:
    return replace(ROW, case=case, variant=variant, values=values, unit=unit, shape=(5,), settings=settings)


@pytest.mark.parametrize("page", ["benchmarks", "precision"])
def test_the_page_is_that_of_the_committed_results(tmp_path: Path, page: str) -> None:
    result = CliRunner().invoke(app, ["results", "--page", page, "--docs", str(tmp_path / "page.md")])
    assert result.exit_code == 0, result.output
    committed = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == committed, (
        f"results were added: isoframe bench results --page {page} --docs docs/{page}.md"
    )


def test_the_page_tells_what_is_measured_and_where() -> None:
    rows = [
        replace(ROW, case="x", variant="a"),
        replace(ROW, case="x", variant="b", basis="predicted"),
        replace(ROW, case="x", variant="c", basis="emulated", command="isoframe bench x"),
    ]
    page = render(rows)
    assert "Here: 1 rows measured, 1 rows predicted, 1 rows emulated." in page
    assert "Nothing here was measured on a GPU." in page
    assert (
        "* `isoframe bench x`: a cpu, 2 of 2 cores, load unknown, torch 2.13.0, Triton 3.7.1, commit abc, 2026-01-01, emulated"
        in page
    )
    card = replace(ENVIRONMENT, gpu="RTX 9000", gpu_bytes=2**33, driver="580")
    page = render([replace(row, environment=card) for row in rows])
    assert "Nothing here was measured on a GPU." not in page
    assert "RTX 9000 (driver 580)" in page


def test_means_have_their_interval() -> None:
    shared = {"pairs": 3, "order": "forward", "computed": 0.5}
    rows = [
        make_row("option-error-sqnr", "int8", (30.0, 31.0, 32.0), "dB", **shared),
        make_row("option-error-psnr", "int8", (40.0, 40.0, 40.0), "dB", **shared),
        make_row("option-error-ssim", "int8", (0.9, 0.9, 0.9), "ratio", **shared),
    ]
    assert (
        "| int8 | 3 forward | 5 | 50% | 31.0 (28.5 to 33.5) | 40.0 (40.0 to 40.0) | 0.9000 (0.9000 to 0.9000) |"
        in render(rows)
    )


def test_ratios_come_with_those_of_neighbours() -> None:
    rows = [
        make_row("peers-section", "diffusers", (2.0, 4.0)),
        make_row("peers-section", "isoframe", (1.0, 3.0)),
        make_row("peers-section", "isoframe/diffusers", (2 / 3,), "ratio"),
    ]
    assert "| peers-section | fp32 | 3 s | 2 s | 0.667 | 0.500 to 0.750 |" in render(rows)


def test_counters_that_differ_are_shouted() -> None:
    rows = [make_row("constant-count-tokens", "sections 6 on", (184.0, 185.0), "count")]
    assert "NOT EQUAL: tokens 184" in render(rows)


def test_rows_behind_a_red_check_have_no_figures() -> None:
    red = Gate(is_green=False, text="gated_residual: wrong")
    page = render([replace(ROW, case="strange", variant="a", gate=red, values=(123.0,))])
    assert "* strange, a: gated_residual: wrong" in page
    assert "123" not in page


def test_rows_of_no_known_case_are_listed() -> None:
    assert "| strange | a | fp32 | 2 s |" in render([replace(ROW, case="strange", variant="a")])
