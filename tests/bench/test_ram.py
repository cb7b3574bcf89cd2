"""A model larger than its RAM budget computes inside it."""

from pathlib import Path

import pytest

from isoframe.bench.ram import CASES, build_store, measure_ram

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
