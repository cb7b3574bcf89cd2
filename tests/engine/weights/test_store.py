"""A store holds the checkpoint, whole or not at all; and every damage has its own message."""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path

import pytest
import torch
from packed_steps import one_step
from safetensors.torch import load_file, save_file
from tiny_models import saved_model
from torch import Tensor

from isoframe.engine.checkpoints.checkpoint import Checkpoint
from isoframe.engine.errors import CheckpointError, InputError
from isoframe.engine.events import ConversionEvent
from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.families.opening import open_transformer
from isoframe.engine.files import exclusive_lock
from isoframe.engine.weights import conversion, store
from isoframe.engine.weights.conversion import cached_store, convert
from isoframe.engine.weights.host_tiers import Tier
from isoframe.engine.weights.store import Store, open_store, partial_folder, store_name
from isoframe.engine.weights.transformer_from_store import open_units, stored_transformer
from isoframe.engine.weights.unit_streamer import Streamer
from isoframe.quant import make_format

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[3]
MODEL_FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharded model of 8 units."""
    folder = tmp_path_factory.mktemp("models") / "Tiny"
    saved_model(folder, num_layers=2, num_single_layers=4, num_refiner_layers=1)
    state = load_file(folder / MODEL_FILE)
    (folder / MODEL_FILE).unlink()
    names = sorted(state)
    shards = {f"part-{i}.safetensors": {name: state[name] for name in names[i::3]} for i in range(3)}
    for name, tensors in shards.items():
        save_file(tensors, folder / name)
    index = {"weight_map": {key: name for name, tensors in shards.items() for key in tensors}}
    (folder / f"{MODEL_FILE}.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def checkpoint(source: Path) -> Checkpoint:
    return open_transformer(source)


@pytest.fixture(scope="module")
def pristine(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("stores") / "int8"
    return convert(open_transformer(source), make_format("int8", torch.float32), folder)


@pytest.fixture
def folder(pristine: Store, tmp_path: Path) -> Path:
    """A private copy of the int8 store, to damage."""
    return Path(shutil.copytree(pristine.folder, tmp_path / "int8"))


@cache
def loaded_step(source: Path, precision: str) -> Tensor:
    weight_format = make_format(precision, torch.float32)
    checkpoint = open_transformer(source)
    transformer = PackedTransformer(
        checkpoint.config, weight_format.dtype, CPU, weight_format=weight_format
    ).filled(checkpoint)
    return one_step(transformer, num_passes=2)


def stored_step(opened: Store, tier: Tier) -> Tensor:
    units = open_units(opened, CPU, tier=tier, ring=3, residents=(1, 4))
    try:
        return one_step(stored_transformer(opened, CPU, units), num_passes=2)
    finally:
        if isinstance(units, Streamer):
            units.close()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8", "int8-weight", "fp8", "nf4"])
def test_a_stored_model_computes_what_the_checkpoint_computes(
    source: Path, tmp_path: Path, precision: str
) -> None:
    opened = convert(open_transformer(source), make_format(precision, torch.float32), tmp_path / "store")
    assert torch.equal(stored_step(opened, "disk"), loaded_step(source, precision))


@pytest.mark.parametrize("tier", ["pinned", "staged"])
def test_every_host_tier_gives_the_same_result(source: Path, pristine: Store, tier: Tier) -> None:
    assert torch.equal(stored_step(pristine, tier), loaded_step(source, "int8"))


def test_a_single_fp8_file_with_scales_is_converted(source: Path, tmp_path: Path) -> None:
    state = dict(open_transformer(source).tensors())
    mirror: dict[str, Tensor] = {"scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for name, tensor in state.items():
        if name.endswith("weight") and tensor.dim() == 2:
            scale = tensor.abs().max() / 448
            mirror[name] = (tensor / scale).to(torch.float8_e4m3fn)
            mirror[name.replace(".weight", ".scale_weight")] = scale
        else:
            mirror[name] = tensor.clone()
    save_file(mirror, tmp_path / "mirror.safetensors")
    shutil.copy(source / "config.json", tmp_path / "config.json")
    path = tmp_path / "mirror.safetensors"
    opened = convert(open_transformer(path), make_format("bf16", torch.bfloat16), tmp_path / "store")
    assert torch.equal(stored_step(opened, "disk"), loaded_step(path, "bf16"))


def test_units_lie_in_execution_order_at_whole_pages(pristine: Store) -> None:
    assert [blob.name for blob in pristine.units] == [layout.spec.name for layout in pristine.layouts]
    paths = [blob.entry.path for blob in pristine.units]
    assert paths == sorted(paths)
    assert all(blob.entry.start % 4096 == 0 for blob in pristine.units)
    names = [name for path in paths for name in load_file(path)]
    assert names == [blob.name for blob in pristine.units], "the safetensors library reads it"


def test_large_models_are_spread_over_files(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """One file a unit, and none that is larger: file systems that end at 4 GiB hold any model."""
    opened = convert(checkpoint, make_format("fp32", torch.float32), tmp_path / "store")
    assert len({blob.entry.path for blob in opened.units}) == len(opened.units)
    assert len({blob.entry.path for blob in opened.parameters.values()}) > 1
    largest = max(opened.unit_bytes + [blob.entry.num_bytes for blob in opened.parameters.values()])
    assert all(path.stat().st_size <= largest + 2**16 for path in opened.folder.glob("*.safetensors"))
    assert torch.equal(stored_step(opened, "disk"), stored_step(opened, "pinned"))


def test_a_store_of_the_first_version_is_read(source: Path, folder: Path) -> None:
    """It had all units in one file, and all other weights in another."""
    manifest, files = json.loads((folder / "manifest.json").read_text()), []
    for kind in ("units", "parameters"):
        files.append(f"{kind}-00001-of-00001.safetensors")
        paths = sorted(folder.glob(f"{kind}-*"))
        tensors = {name: tensor.clone() for path in paths for name, tensor in load_file(path).items()}
        for path in paths:
            path.unlink()
        save_file(tensors, folder / files[-1])
        manifest[kind] = [{**row, "file": files[-1]} for row in manifest[kind]]
    edit_manifest(folder, units=manifest["units"], parameters=manifest["parameters"], files=files)
    opened = open_store(folder)
    opened.verify()
    assert torch.equal(stored_step(opened, "staged"), loaded_step(source, "int8"))


def test_what_was_converted_has_its_noise_and_the_rest_is_as_it_was(
    checkpoint: Checkpoint, pristine: Store
) -> None:
    assert set(pristine.sqnr) | set(pristine.parameters) | {
        name.replace(".weight", ".bias") for name in pristine.sqnr
    } == set(checkpoint.shapes)
    assert all(decibel is not None and 35 < decibel < 50 for decibel in pristine.sqnr.values())
    assert pristine.num_bytes < sum(entry.num_bytes for entry in checkpoint.entries.values())


def test_an_exact_format_has_no_noise(checkpoint: Checkpoint, tmp_path: Path) -> None:
    opened = convert(checkpoint, make_format("fp32", torch.float32), tmp_path / "store")
    assert set(opened.sqnr.values()) == {None}


@pytest.mark.parametrize(
    ("value", "precision", "message"),
    [(70_000, "fp16", "at most 65504 in fp16, got 7e[+]04; use bf16"), (float("nan"), "int8", "not finite")],
)
def test_values_that_a_format_cannot_hold_are_refused(
    source: Path, tmp_path: Path, value: float, precision: str, message: str
) -> None:
    model = Path(shutil.copytree(source, tmp_path / "model"))
    state = load_file(model / "part-0.safetensors")
    name = next(n for n in state if n.startswith("transformer_blocks") and n.endswith("proj.weight"))
    state[name][0, 0] = value
    save_file(state, model / "part-0.safetensors")
    with pytest.raises(CheckpointError, match=f"{name}.*{message}"):
        convert(open_transformer(model), make_format(precision, torch.float16), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_progress_counts_every_byte_once_in_each_phase(checkpoint: Checkpoint, tmp_path: Path) -> None:
    seen: list[ConversionEvent] = []
    opened = convert(checkpoint, make_format("int8", torch.float32), tmp_path / "store", seen.append)
    for phase in ("convert", "verify"):
        done = [event.done_bytes for event in seen if event.phase == phase]
        assert done == sorted(done)
        assert done[-1] == opened.num_bytes == seen[0].total_bytes


class StoppedError(Exception):
    pass


def stop_after(count: int) -> Callable[[ConversionEvent], None]:
    def on_progress(_: ConversionEvent) -> None:
        nonlocal count
        count -= 1
        if count == 0:
            raise StoppedError

    return on_progress


def contents(path: Path) -> dict[str, str]:
    return {
        str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize("count", [1, 5, 8, 30])
def test_a_stopped_conversion_goes_on_where_it_stopped(
    checkpoint: Checkpoint, pristine: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    target, weight_format = tmp_path / "store", make_format("int8", torch.float32)
    with pytest.raises(StoppedError):
        convert(checkpoint, weight_format, target, stop_after(count))
    assert not target.exists()
    (partial_folder(target) / ".units-00006-of-00008.safetensors.a1b2.tmp").write_bytes(b"cut sho")
    made: list[str] = []
    make = conversion._Conversion._make
    monkeypatch.setattr(
        conversion._Conversion, "_make", lambda self, part: made.append(part.file) or make(self, part)
    )
    opened = convert(checkpoint, weight_format, target)
    files = [
        path.name for kind in ("units", "parameters") for path in sorted(opened.folder.glob(f"{kind}-*"))
    ]
    assert made == files[count:]
    assert contents(target) == contents(pristine.folder)
    assert not partial_folder(target).exists()


KILLED = """
import os, sys, torch
from isoframe.engine.families.opening import open_transformer
from isoframe.engine.weights.conversion import convert
from isoframe.quant import make_format
seen = []
def die(progress):
    seen.append(progress)
    if len(seen) == 6:
        os.kill(os.getpid(), 9)
convert(open_transformer(sys.argv[1]), make_format("int8", torch.float32), sys.argv[2], die)
"""


def test_a_killed_conversion_leaves_nothing_under_the_name_and_goes_on(
    source: Path, pristine: Store, tmp_path: Path
) -> None:
    target = tmp_path / "store"
    environment = os.environ | {"PYTHONPATH": str(ROOT / ".src")}
    command = [sys.executable, "-P", "-c", KILLED, str(source), str(target)]
    assert subprocess.run(command, env=environment, timeout=120, check=False).returncode == -9
    assert not target.exists()
    with pytest.raises(CheckpointError, match="was converted in part only"):
        open_store(target)
    convert(open_transformer(source), make_format("int8", torch.float32), target)
    assert contents(target) == contents(pristine.folder)


def test_a_partial_store_of_another_precision_is_begun_anew(
    checkpoint: Checkpoint, pristine: Store, tmp_path: Path
) -> None:
    target = tmp_path / "store"
    with pytest.raises(StoppedError):
        convert(checkpoint, make_format("fp32", torch.float32), target, stop_after(5))
    # The first version wrote a journal, and files at their full size with holes.
    (partial_folder(target) / "progress.jsonl").write_text("{}")
    save_file({"a": torch.zeros(9)}, partial_folder(target) / "units-00001-of-00001.safetensors")
    convert(checkpoint, make_format("int8", torch.float32), target)
    assert contents(target) == contents(pristine.folder)


def test_a_full_disk_is_named_and_the_source_is_as_it_was(
    source: Path, pristine: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, before, save = tmp_path / "store", contents(source), conversion.save_file
    written: list[Path] = []

    def write_until_full(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
        written.append(path)
        if len(written) > 6:
            # The limit of a process stands for the end of a disk.
            before = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (9000, before[1]))
            try:
                save(tensors, path, metadata)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
        save(tensors, path, metadata)

    monkeypatch.setattr(conversion, "save_file", write_until_full)
    with pytest.raises(
        InputError, match=r"store\.partial cannot be written: File too large .*; .* GiB are missing"
    ):
        convert(open_transformer(source), make_format("int8", torch.float32), target)
    assert not target.exists()
    assert contents(source) == before
    assert not list(partial_folder(target).glob(".*"))
    monkeypatch.setattr(conversion, "save_file", save)
    convert(open_transformer(source), make_format("int8", torch.float32), target)
    assert contents(target) == contents(pristine.folder)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"the store needs 0\.\d\d GiB, .* has 0\.00 GiB free"):
        convert(checkpoint, make_format("fp32", torch.float32), tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_two_processes_do_not_convert_to_one_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    target = tmp_path / "store"
    partial_folder(target).mkdir()
    with (
        exclusive_lock(partial_folder(target) / "lock", "mine"),
        pytest.raises(InputError, match="another process converts to"),
    ):
        convert(checkpoint, make_format("int8", torch.float32), target)


@pytest.mark.parametrize("moment", ["before the folder", "before the lock"])
def test_a_conversion_that_loses_the_race_leaves_nothing(
    checkpoint: Checkpoint, pristine: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    target, weight_format = tmp_path / "store", make_format("int8", torch.float32)
    check_space, lock = conversion._Conversion._check_space, conversion.exclusive_lock

    def win() -> None:
        monkeypatch.undo()
        convert(checkpoint, weight_format, target)

    def before_folder(self: conversion._Conversion) -> None:
        win()
        check_space(self)

    def before_lock(path: Path, message: str) -> AbstractContextManager[None]:
        win()
        return lock(path, message)

    if moment == "before the folder":
        monkeypatch.setattr(conversion._Conversion, "_check_space", before_folder)
    else:
        monkeypatch.setattr(conversion, "exclusive_lock", before_lock)
    assert convert(checkpoint, weight_format, target).folder == target
    assert [path.name for path in tmp_path.iterdir()] == ["store"]
    assert contents(target) == contents(pristine.folder)


def test_a_finished_store_is_opened_not_made_again(
    checkpoint: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversion._Conversion, "run", lambda _: pytest.fail("converted again"))
    assert convert(checkpoint, make_format("int8", torch.float32), folder).folder == folder
    with pytest.raises(InputError, match="is a store of another model or precision"):
        convert(checkpoint, make_format("bf16", torch.bfloat16), folder)
    (folder.parent / "other").mkdir()
    with pytest.raises(InputError, match="exists and is not a unit store"):
        convert(checkpoint, make_format("int8", torch.float32), folder.parent / "other")


def test_the_cache_names_a_store_by_source_precision_and_version(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    opened = cached_store(checkpoint, make_format("int8", torch.bfloat16), tmp_path)
    assert opened.folder == tmp_path / "stores" / f"{checkpoint.source_hash}-int8-v1"
    assert store_name("abc", make_format("int8", torch.float32)) == "abc-int8-float32-v1"
    assert store_name("abc", make_format("fp16", torch.float16)) == "abc-fp16-v1"


def flip_byte(path: Path, offset: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[offset] ^= 4
    path.write_bytes(raw)


def edit_manifest(folder: Path, **changes: object) -> None:
    """A manifest whose digest is right."""
    manifest = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps({**manifest, "digest": store.manifest_digest(manifest)}))


def units_file(folder: Path) -> Path:
    return folder / "units-00001-of-00008.safetensors"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: os.truncate(units_file(f), 9000), "is truncated"),
        (lambda f: units_file(f).unlink(), "cannot be read"),
        (lambda f: flip_byte(f / "manifest.json", 900), r"damaged: manifest\.json does not match its digest|readable JSON"),
        (lambda f: os.truncate(f / "manifest.json", 900), "is not readable JSON"),
        (lambda f: edit_manifest(f, format_version=2), "has store format 2, this version reads 1; convert"),
        (lambda f: edit_manifest(f, precision="int7"), "is of precision 'int7', this version knows fp32"),
        (lambda f: edit_manifest(f, precision="fp32"), "are laid out differently than this version reads them"),
        (lambda f: edit_manifest(f, files=[]), "lacks or misstates 'units-00001"),
        (lambda f: (f / "manifest.json").unlink(), r"has no manifest\.json: it is not a unit store"),
        (shutil.rmtree, "does not exist; make it with `isoframe convert MODEL"),
        (lambda f: f.rename(partial_folder(f)), "was converted in part only"),
    ],
    ids=["truncated", "missing", "flipped-manifest", "cut-manifest", "version", "precision", "layout", "files",
         "no-manifest", "no-folder", "half"],
)  # fmt: skip
def test_damage_is_named_when_the_store_is_opened(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        open_store(folder)


@pytest.mark.parametrize("kind", ["units", "parameters"])
def test_a_flipped_bit_is_found_by_the_hashes(folder: Path, kind: str) -> None:
    path = sorted(folder.glob(f"{kind}-*"))[0]
    flip_byte(path, path.stat().st_size - 5000)
    opened = open_store(folder)
    with pytest.raises(CheckpointError, match=rf"in .*{path.name} is damaged"):
        stored_step(opened, "disk")
    with pytest.raises(
        CheckpointError, match=rf"in .*{path.name} is damaged: its bytes do not match their hash"
    ):
        opened.verify()
