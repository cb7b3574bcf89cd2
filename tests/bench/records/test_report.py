"""The page: complete, self-contained, escaped, and refused early where a library is missing."""

import dataclasses
import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_rows import ENVIRONMENT, ROW
from typer.testing import CliRunner

from isoframe.bench.commands import app
from isoframe.bench.constant.claim_rows import ConstantSubject, constant_rows
from isoframe.bench.constant.claims import ConstantResult, Finding
from isoframe.bench.constant.claims_page import write_constant_report
from isoframe.bench.meters.job_cost import JobCost, PhaseCost
from isoframe.bench.meters.memory_meter import MemoryReading
from isoframe.bench.meters.section_counts import SectionCounts
from isoframe.bench.records.html_page import machine_results
from isoframe.bench.records.rows import BenchRow, Gate
from isoframe.engine import EngineConfig, Request

MIB = 2**20
COUNTS = SectionCounts(
    tokens=1,
    operations=2,
    allocated_bytes=3,
    live_bytes=4,
    decoded_frames=5,
    encoded_frames=6,
    device_bytes=7,
)


def make_job(length: float, num_sections: int) -> JobCost:
    """Sections of 0.1 + 1 + 0.4 s with 1000 MiB at most."""
    phases, start = [], 0.0
    for section in range(num_sections):
        for phase, seconds, peak in (("pack", 0.1, 800), ("denoise", 1.0, 900), ("decode", 0.4, 1000)):
            memory = MemoryReading(
                rss=700 * MIB, peak_rss=peak * MIB, allocated=2**30, peak_allocated=2**31, reserved=2**31,
                device_used=2**32,
            )  # fmt: skip
            phases.append(
                PhaseCost(
                    phase=phase, section=section, start=start, seconds=seconds, memory=memory, written=10
                )
            )
            start += seconds
    return JobCost(length=length, phases=tuple(phases), file_bytes=1000, measuring=0.001)


def make_result(gate: Gate) -> ConstantResult:
    finding = Finding(claim="time", status="passed", text="growth +0.1% <script>alert(1)</script>")
    jobs = (make_job(5, 4), make_job(12, 10))
    return ConstantResult(gate=gate, counts=(COUNTS,) * 9, jobs=jobs, findings=(finding,))


def make_rows(result: ConstantResult, **environment: Any) -> list[BenchRow]:
    subject = ConstantSubject(
        model="demo", model_hash="", device=torch.device("cpu"), config=EngineConfig(attention="sdpa"), render=print
    )  # fmt: skip
    where = dataclasses.replace(ENVIRONMENT, **environment)
    rows = constant_rows(result, subject, Request(image="", prompt="", order="forward"))
    return [dataclasses.replace(row, environment=where) for row in rows]


GREEN = Gate(is_green=True, text="14 operations agree")
RED = Gate(is_green=False, text="gated_residual: wrong")


def write(path: Path, gate: Gate = GREEN) -> str:
    result = make_result(gate)
    write_constant_report(path, result, make_rows(result))
    return path.read_text(encoding="utf-8")


def test_page_has_claims_plots_cards_and_versions(tmp_path: Path) -> None:
    page = write(tmp_path / "new/out.html")
    assert page.count("<svg") == page.count("</svg>") == 3
    for text in (
        "Every second of video costs the same.",
        "growth +0.1%",
        "a cpu",
        "2.13.0",
        "length of the video",
    ):
        assert text in page
    for phase in ("pack", "denoise", "decode"):
        assert f">{phase}</text>" in page


def test_page_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = write(tmp_path / "out.html")
    links = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", page)
    assert all(link.startswith("#") for link in links)
    assert "<link" not in page
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_same_figures_make_the_same_page(tmp_path: Path) -> None:
    result = make_result(GREEN)
    rows = make_rows(result)
    pages = []
    for name in ("a.html", "b.html"):
        write_constant_report(tmp_path / name, result, rows)
        pages.append((tmp_path / name).read_bytes())
    assert pages[0] == pages[1]


def test_a_card_has_every_unit_of_the_longest_video() -> None:
    (card,) = machine_results(make_rows(make_result(GREEN), gpu="RTX 9000", gpu_bytes=2**33, driver="1"))
    assert (card.hardware, card.precision) == ("RTX 9000", "fp32")
    assert card.settings == "size auto, order forward, steps 25, attention sdpa, 12 s"
    assert (card.step, card.frame, card.section) == pytest.approx((1 / 25, 1.5 / 36, 1.5))
    assert (card.host_peak, card.device_peak) == (1000, 2048)


def test_machines_have_cards_of_their_own() -> None:
    result = make_result(GREEN)
    rows = make_rows(result) + make_rows(result, cpu="another") + [ROW]
    assert [card.hardware for card in machine_results(rows)] == ["a cpu", "another"]


def test_no_figures_are_shown_behind_a_red_gate(tmp_path: Path) -> None:
    page = write(tmp_path / "out.html", RED)
    assert "no figures: a correctness gate is red" in page
    assert ">0.04</td>" not in page
    assert ">0.04</td>" in write(tmp_path / "green.html")


def test_a_missing_library_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "jinja2" else find_spec(name)
    )
    arguments = ["constant", "--model", "nowhere", "--report", str(tmp_path / "out.html")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "a report needs jinja2: pip install jinja2, or the extra isoframe[bench]" in result.stderr
