"""A model larger than its RAM budget computes inside it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isoframe.bench.ram import CASES, build_store, measure_ram

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak is read from Linux's account of the process"
)


def test_a_step_from_disk_stays_in_the_budget_that_a_model_in_memory_exceeds(tmp_path: Path) -> None:
    case = CASES["small"]
    store = build_store(case, tmp_path / "store")
    assert len(store.units) == 40
    assert 2 * case.ram_bytes < sum(entry.num_bytes for entry in store.unit_entries)
    streamed, in_memory = (measure_ram(case, store, tier) for tier in ("auto", "pinned"))
    assert streamed.tier == "disk"
    assert streamed.is_reached, streamed
    assert not in_memory.is_reached, in_memory
    assert streamed.checksum == in_memory.checksum


CONVERSION = """
import sys, torch
from pathlib import Path
from isoframe.bench.ram import RamCase, build_store
from isoframe.bench.ram_step import status_bytes
_ = torch.randn(256, 256) @ torch.randn(256, 256)
before = status_bytes("VmRSS")
case = RamCase(name="wide", num_heads=8, num_dual_blocks=1, num_single_blocks=1, ram_bytes=0)
store = build_store(case, Path(sys.argv[1]))
unit = max(entry.num_bytes for entry in store.unit_entries)
tensor = 4 * 1024 * 4096
print(status_bytes("VmHWM") - before, 3 * unit + tensor, unit)
"""


def test_a_conversion_needs_at_most_three_units_and_one_tensor(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / ".src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", CONVERSION, str(tmp_path / "store")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    peak, limit, unit = map(int, done.stdout.split())
    assert unit == pytest.approx(12 * 1024**2 * 4, rel=0.01)
    assert unit < peak <= limit
