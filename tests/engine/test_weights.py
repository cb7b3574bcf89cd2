"""Host tiers: the same blobs from RAM, from mapped files and from disk."""

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from isoframe.engine import weights as host_weights
from isoframe.engine.errors import CheckpointError
from isoframe.engine.tensor_files import TensorEntry
from isoframe.engine.weights import (
    DiskWeights,
    MappedWeights,
    PinError,
    PinnedWeights,
    Tier,
    choose_tier,
    open_weights,
)

CPU = torch.device("cpu")
SIZES = (4096, 8192, 4096)


@pytest.fixture
def blobs(tmp_path: Path) -> list[Tensor]:
    return [torch.randint(256, (size,), dtype=torch.uint8) for size in SIZES]


@pytest.fixture
def entries(tmp_path: Path, blobs: list[Tensor]) -> list[TensorEntry]:
    """The blobs in two files, behind some other bytes."""
    places, start = [], 100
    for unit, blob in enumerate(blobs):
        path = tmp_path / f"{unit // 2}.bin"
        start = path.stat().st_size if path.exists() else 100
        with path.open("ab") as file:
            file.write(b"\0" * (100 if start == 100 else 0) + blob.numpy().tobytes())
        places.append(
            TensorEntry(path=path, dtype="U8", shape=(blob.numel(),), start=start, num_bytes=blob.numel())
        )
    return places


@pytest.mark.parametrize(
    ("tier", "kind"), [("pinned", PinnedWeights), ("staged", MappedWeights), ("disk", DiskWeights)]
)
def test_every_tier_reads_every_blob(
    entries: list[TensorEntry], blobs: list[Tensor], tier: Tier, kind: type
) -> None:
    weights = open_weights(entries, tier, CPU)
    assert isinstance(weights, kind)
    for unit in (2, 0, 1, 0):
        out = torch.zeros(8192, dtype=torch.uint8)
        weights.read(unit, out)
        assert torch.equal(out[: SIZES[unit]], blobs[unit])
        assert not out[SIZES[unit] :].any()
    weights.close()


def test_slabs_hold_as_many_blobs_as_fit(
    entries: list[TensorEntry], blobs: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_weights, "_SLAB_BYTES", 12288)
    weights = PinnedWeights.read_all(entries, is_locked=False)
    assert [slab.tensor.numel() for slab in weights._slabs] == [12288, 4096]
    assert all(torch.equal(*pair) for pair in zip(weights.blobs, blobs, strict=True))


def test_memory_that_cannot_be_locked_is_replaced_by_mapped_files_with_one_warning(
    entries: list[TensorEntry],
    blobs: list[Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    locked: list[int] = []

    def lock(address: int, num_bytes: int) -> None:
        if locked:
            raise PinError("no more")
        locked.append(address)

    unlocked: list[int] = []
    monkeypatch.setattr(host_weights, "_SLAB_BYTES", 4096)
    monkeypatch.setattr(host_weights, "_lock", lock)
    monkeypatch.setattr(host_weights, "_unlock", unlocked.append)
    with caplog.at_level(logging.WARNING):
        weights = open_weights(entries, "pinned", torch.device("cuda"))
    assert isinstance(weights, MappedWeights)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "the weights cannot be locked in memory (no more)"
    ]
    assert unlocked == locked, "what was locked before the failure is unlocked"


@pytest.mark.parametrize("tier", ["pinned", "disk"])
def test_a_file_that_ends_early_is_named(entries: list[TensorEntry], tier: Tier) -> None:
    with entries[0].path.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(CheckpointError, match=r"0\.bin ends inside unit 1; convert the model again"):
        _read_second(entries, tier)


def _read_second(entries: list[TensorEntry], tier: Tier) -> None:
    weights = open_weights(entries, tier, CPU)
    try:
        weights.read(1, torch.empty(8192, dtype=torch.uint8))
    finally:
        weights.close()


@pytest.mark.parametrize(
    ("ram", "max_pinned", "tier"),
    [
        (100, None, "pinned"),
        (100, 100, "pinned"),
        (100, 99, "disk"),
        (130, 99, "staged"),
        (99, None, "disk"),
    ],
)
def test_the_tier_follows_from_the_ram(ram: int, max_pinned: int | None, tier: Tier) -> None:
    assert choose_tier(100, ram_bytes=ram, ring_bytes=30, max_pinned_bytes=max_pinned) == tier
