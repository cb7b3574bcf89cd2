"""The allocator's limit is one for the process: engines add up, none starves another or the host."""

import pytest
import torch

from isoframe.engine.weights import memory as memory_limit
from isoframe.engine.weights.memory import MemoryShare

GIB = 2**30
DEVICE = torch.device("cuda", 0)


@pytest.fixture
def fractions(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Of an 8-GiB card on which the host holds 1 GiB: what was set."""
    found: list[float] = []
    monkeypatch.setattr(memory_limit, "_shares", {})
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (6 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: GIB)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, _: found.append(part))
    return found


def test_the_limit_is_the_sum_of_the_open_engines_and_of_what_the_host_held(fractions: list[float]) -> None:
    first, second = MemoryShare(DEVICE), MemoryShare(DEVICE)
    first.set(3 * GIB)
    second.set(2 * GIB)
    second.set(GIB)
    first.withdraw()
    second.withdraw()
    assert fractions == [4 / 8, 6 / 8, 5 / 8, 2 / 8, 1.0]


def test_an_engine_that_lifts_the_limit_lifts_it_until_it_is_closed(fractions: list[float]) -> None:
    lifted, other = MemoryShare(DEVICE), MemoryShare(DEVICE)
    lifted.set(3 * GIB)
    lifted.lift()
    other.set(2 * GIB)
    lifted.set(GIB)
    lifted.withdraw()
    assert fractions == [4 / 8, 1.0, 1.0, 1.0, 3 / 8]


def test_an_engine_that_nobody_closed_counts_no_more(fractions: list[float]) -> None:
    forgotten = MemoryShare(DEVICE)
    forgotten.set(6 * GIB)
    del forgotten
    kept = MemoryShare(DEVICE)
    kept.set(2 * GIB)
    assert fractions == [7 / 8, 3 / 8]


def test_the_host_takes_no_limit_for_an_engine_on_the_cpu(fractions: list[float]) -> None:
    share = MemoryShare(torch.device("cpu"))
    share.set(GIB)
    share.lift()
    share.withdraw()
    assert fractions == []
