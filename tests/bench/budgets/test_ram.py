"""A model larger than its RAM budget computes inside it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isoframe.bench.budgets.ram_cases import CASES, build_store, measure_ram

ROOT = Path(__file__).resolve().parents[3]
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak is read from Linux's account of the process"
)


def test_an_engine_with_a_budget_stays_in_it_and_one_without_exceeds_it(tmp_path: Path) -> None:
    case = CASES["small"]
    store = build_store(case, tmp_path / "store")
    assert len(store.units) == 40
    assert case.ram_bytes < sum(store.unit_bytes)
    streamed, in_memory = (measure_ram(case, store, has_budget=has_budget) for has_budget in (True, False))
    assert streamed.outcome.tier == "disk"
    assert streamed.is_reached, streamed
    assert streamed.outcome.planned <= case.ram_bytes
    assert not in_memory.is_reached, in_memory
    assert streamed.outcome.checksum == in_memory.outcome.checksum


CONVERSION = """
import psutil, sys, torch
from pathlib import Path
from isoframe.bench.budgets.ram_cases import RamCase, build_store
from isoframe.bench.meters.memory_meter import take_peak_rss
_ = torch.randn(256, 256) @ torch.randn(256, 256)
before = psutil.Process().memory_info().rss
case = RamCase(name="wide", num_heads=8, num_dual_blocks=1, num_single_blocks=1, ram_bytes=0)
store = build_store(case, Path(sys.argv[1]))
unit = max(store.unit_bytes)
tensor = 4 * 1024 * 4096
print(take_peak_rss() - before, 3 * unit + tensor, unit)
"""


def test_a_conversion_needs_at_most_three_units_and_one_tensor(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / ".src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", CONVERSION, str(tmp_path / "store")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    peak, limit, unit = map(int, done.stdout.split())
    assert unit == pytest.approx(12 * 1024**2 * 4, rel=0.01)
    assert unit < peak <= limit
