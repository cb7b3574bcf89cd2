"""Host tiers: the same blobs from RAM, from mapped files and from disk."""

import hashlib
import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from isoframe.engine.checkpoints.tensor_files import TensorEntry
from isoframe.engine.errors import CheckpointError
from isoframe.engine.weights import host_tiers as host_weights
from isoframe.engine.weights.host_tiers import (
    DiskWeights,
    MappedWeights,
    PinError,
    PinnedWeights,
    Tier,
    open_weights,
)
from isoframe.engine.weights.store import StoredBlob

CPU = torch.device("cpu")
SIZES = (4096, 8192, 4096)


@pytest.fixture
def blobs(tmp_path: Path) -> list[Tensor]:
    return [torch.randint(256, (size,), dtype=torch.uint8) for size in SIZES]


@pytest.fixture
def stored(tmp_path: Path, blobs: list[Tensor]) -> list[StoredBlob]:
    """The blobs in two files, behind some other bytes."""
    places, start = [], 100
    for unit, blob in enumerate(blobs):
        path = tmp_path / f"{unit // 2}.bin"
        start = path.stat().st_size if path.exists() else 100
        with path.open("ab") as file:
            file.write(b"\0" * (100 if start == 100 else 0) + blob.numpy().tobytes())
        entry = TensorEntry(path=path, dtype="U8", shape=(blob.numel(),), start=start, num_bytes=blob.numel())
        sha256 = hashlib.sha256(blob.numpy().tobytes()).hexdigest()
        places.append(StoredBlob(name=f"unit {unit}", entry=entry, sha256=sha256))
    return places


@pytest.mark.parametrize(
    ("tier", "kind"), [("pinned", PinnedWeights), ("staged", MappedWeights), ("disk", DiskWeights)]
)
def test_every_tier_reads_every_blob(
    stored: list[StoredBlob], blobs: list[Tensor], tier: Tier, kind: type
) -> None:
    weights = open_weights(stored, tier, CPU)
    assert isinstance(weights, kind)
    for unit in (2, 0, 1, 0):
        out = torch.zeros(8192, dtype=torch.uint8)
        weights.read(unit, out)
        assert torch.equal(out[: SIZES[unit]], blobs[unit])
        assert not out[SIZES[unit] :].any()
    weights.close()


def test_slabs_hold_as_many_blobs_as_fit(
    stored: list[StoredBlob], blobs: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_weights, "_SLAB_BYTES", 12288)
    weights = PinnedWeights.read_all(stored, is_locked=False)
    assert [slab.tensor.numel() for slab in weights._slabs] == [12288, 4096]
    assert all(torch.equal(*pair) for pair in zip(weights.blobs, blobs, strict=True))


def test_memory_that_cannot_be_locked_is_replaced_by_mapped_files_with_one_warning(
    stored: list[StoredBlob],
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
        weights = open_weights(stored, "pinned", torch.device("cuda"))
    assert isinstance(weights, MappedWeights)
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "the weights cannot be locked in memory (no more)"
    ]
    assert unlocked == locked, "what was locked before the failure is unlocked"


@pytest.mark.parametrize("tier", ["pinned", "disk"])
def test_a_file_that_ends_early_is_named(stored: list[StoredBlob], tier: Tier) -> None:
    with stored[0].entry.path.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(CheckpointError, match=r"0\.bin ends inside unit 1; convert the model again"):
        _read_second(stored, tier)


def _read_second(stored: list[StoredBlob], tier: Tier) -> None:
    weights = open_weights(stored, tier, CPU)
    try:
        weights.read(1, torch.empty(8192, dtype=torch.uint8))
    finally:
        weights.close()


@pytest.mark.parametrize("tier", ["pinned", "staged", "disk"])
def test_a_flipped_bit_is_found_when_the_unit_is_read(stored: list[StoredBlob], tier: Tier) -> None:
    path = stored[1].entry.path
    raw = bytearray(path.read_bytes())
    raw[stored[1].entry.start + 4000] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"unit 1 in .*0\.bin is damaged.*convert the model again"):
        _read_second(stored, tier)


@pytest.mark.parametrize("tier", ["staged", "disk"])
def test_a_unit_is_hashed_once_in_a_process(
    stored: list[StoredBlob], tier: Tier, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []
    sha256 = hashlib.sha256
    monkeypatch.setattr(
        "isoframe.engine.weights.store.hashlib.sha256",
        lambda content: hashed.append(len(content)) or sha256(content),
    )
    for _ in range(2):
        weights = open_weights(stored, tier, CPU)
        for unit in (0, 1, 0):
            weights.read(unit, torch.empty(8192, dtype=torch.uint8))
        weights.close()
    assert hashed == [4096, 8192]
