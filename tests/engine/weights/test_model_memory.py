"""A job inside a memory budget computes what it computes without one, and goes on after the device was full."""

import dataclasses
import gc
import json
import logging
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import IMAGE_WIDTH, POOLED_WIDTH, TEXT_WIDTH, saved_model

from isoframe.engine import (
    BudgetError,
    Conditioning,
    ConfigError,
    Engine,
    EngineConfig,
    Request,
    SamplingConfig,
)
from isoframe.engine.companions.components import find_components
from isoframe.engine.companions.encoders import Encoders
from isoframe.engine.companions.vae import VideoVAE
from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.families.opening import open_transformer
from isoframe.engine.families.transformer_base import StepPass
from isoframe.engine.generation.model_lookup import find_model
from isoframe.engine.model.units import ResidentUnits
from isoframe.engine.planning.machine import CONTEXT_BYTES
from isoframe.engine.weights.conversion import convert
from isoframe.engine.weights.host_tiers import DiskWeights
from isoframe.engine.weights.memory import MemoryShare
from isoframe.engine.weights.unit_streamer import Streamer
from isoframe.quant import make_format

EXAMPLE = Path(__file__).parents[3] / "examples" / "spin.png"
SAMPLING = SamplingConfig(num_sections=2, num_steps=2, latent_window_size=2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty units of 13 MiB in fp32."""
    folder = tmp_path_factory.mktemp("model")
    saved_model(folder, num_attention_heads=8, num_layers=1, num_single_layers=18, num_refiner_layers=1)
    return folder


@pytest.fixture
def conditioning() -> Conditioning:
    return Conditioning(
        text_embeds=torch.randn(1, 4, TEXT_WIDTH),
        text_mask=torch.ones(1, 4, dtype=torch.bool),
        pooled_embeds=torch.randn(1, POOLED_WIDTH),
        image_embeds=torch.randn(1, 5, IMAGE_WIDTH),
        start_latent=torch.randn(1, 16, 1, 4, 6),
    )


def config(tmp_path: Path, **options: Any) -> EngineConfig:
    return EngineConfig(device="cpu", cache_dir=tmp_path / "cache", **options)


def test_units_that_do_not_fit_are_streamed_and_nothing_changes(
    model: Path, conditioning: Conditioning, tmp_path: Path
) -> None:
    size = (48, 32)
    with Engine.load(model, config=config(tmp_path), size=size) as engine:
        assert isinstance(engine._memory.units, ResidentUnits)
        expected = engine.sample_video(conditioning, SAMPLING)
    with Engine.load(model, config=config(tmp_path, ram="220MiB"), size=size) as engine:
        actual = engine.sample_video(conditioning, SAMPLING)
        units = engine._memory.units
        assert isinstance(units, Streamer)
        assert units.num_bytes < 200 * 2**20
    assert torch.equal(actual, expected)
    assert list((tmp_path / "cache" / "stores").iterdir())


def test_copies_and_uses_of_a_job_are_traced(model: Path, conditioning: Conditioning, tmp_path: Path) -> None:
    with Engine.load(model, config=config(tmp_path, ram="300MiB"), size=(48, 32)) as engine:
        with pytest.raises(ConfigError, match="nothing to trace"):
            engine.write_trace(tmp_path / "trace.json")
        expected = engine.sample_video(conditioning, SAMPLING)
        engine.trace()
        assert torch.equal(engine.sample_video(conditioning, SAMPLING), expected)
        engine.write_trace(tmp_path / "trace.json")
        engine.write_trace(tmp_path / "chart.svg")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    uses = [event["name"] for event in events if event["tid"].startswith("compute")]
    assert len(uses) == 20 * SAMPLING.num_sections * SAMPLING.num_steps
    assert "40 uses of units" in (tmp_path / "chart.svg").read_text()


def test_a_budget_that_nothing_fits_is_refused_with_the_option_that_helps(
    model: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        BudgetError, match=r"needs at least .*, 20 MiB are allowed; use --ram \d+MiB"
    ) as caught:
        Engine.load(model, config=config(tmp_path, ram="20MiB"), size=(48, 32))
    assert caught.value.option == "ram"


def test_jobs_of_one_engine_with_different_plans_take_turns(
    model: Path, conditioning: Conditioning, tmp_path: Path
) -> None:
    with Engine.load(model, config=config(tmp_path, ram="220MiB"), size=(48, 32)) as engine:
        expected = engine.sample_video(conditioning, SAMPLING)
        jobs = [engine.sample(conditioning, SAMPLING) for _ in range(2)]
        for first, second in zip(*jobs, strict=True):
            assert torch.equal(first.latents, second.latents)
        assert torch.equal(engine.sample_video(conditioning, SAMPLING), expected)


def request(**options: Any) -> Request:
    return Request(
        image=EXAMPLE, prompt="a red circle spins", seconds=0.5, num_steps=1, latent_window_size=2, **options
    )


CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
CUDNN = "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"


@pytest.mark.parametrize(
    ("owner", "method", "phase", "failing_call", "error"),
    [
        (Encoders, "encode_prompts", "text", 1, torch.OutOfMemoryError("no room")),
        (VideoVAE, "encode", "image", 1, RuntimeError(CUDNN)),
        (Encoders, "encode_images", "image", 1, RuntimeError(CUBLAS)),
        (PackedTransformer, "prepare_job", "prepare", 1, RuntimeError(CUBLAS)),
        (StepPass, "compute", "denoise", 2, torch.OutOfMemoryError("no room")),
        (StepPass, "compute", "denoise", 1, RuntimeError(CUBLAS)),
        (VideoVAE, "decode", "decode", 2, torch.OutOfMemoryError("no room")),
        (VideoVAE, "decode", "decode", 2, RuntimeError(CUDNN)),
    ],
    ids=["text", "vae", "siglip", "prepare", "denoise", "denoise-cublas", "decode", "decode-cudnn"],
)
def test_a_job_goes_on_from_the_same_section_after_the_device_was_full(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type,
    method: str,
    phase: str,
    failing_call: int,
    error: Exception,
) -> None:
    with Engine.load("demo", config=config(tmp_path)) as engine:
        expected = torch.cat([section.frames for section in engine.generate(request())])
        calls = []
        original = getattr(owner, method)

        def fails_once(*args: Any, **options: Any) -> Any:
            calls.append(phase)
            if len(calls) == failing_call:
                raise error
            return original(*args, **options)

        monkeypatch.setattr(owner, method, fails_once)
        with caplog.at_level(logging.WARNING):
            frames = torch.cat([section.frames for section in engine.generate(request())])
    assert torch.equal(frames, expected)
    assert len(calls) > failing_call
    assert caplog.text.count(f"out of memory in phase '{phase}' (") == 1
    assert "going on with" in caplog.text


def test_what_is_no_lack_of_memory_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def fail(*_args: object, **_options: object) -> None:
        calls.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with Engine.load("demo", config=config(tmp_path)) as engine:
        monkeypatch.setattr(StepPass, "compute", fail)
        with pytest.raises(RuntimeError, match="illegal memory access"):
            next(engine.generate(request()))
    assert len(calls) == 1


def test_a_job_that_nothing_smaller_fits_is_tried_once_more_with_the_same_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Engine.load("demo", config=config(tmp_path)) as engine:
        full = engine._memory.machine
        monkeypatch.setattr(engine._memory, "machine", replace(full, vram=2**20))
        with pytest.raises(BudgetError) as refusal:
            engine._memory.plan(engine._memory.job(SAMPLING, (64, 64)))
        monkeypatch.setattr(engine._memory, "machine", replace(full, vram=refusal.value.needed))
        job = engine._memory.plan(engine._memory.job(SAMPLING, (64, 64)))
        plan, failures = job.plan, [RuntimeError(CUBLAS)]

        def work() -> str:
            if failures:
                raise failures.pop()
            return "done"

        assert job.attempt("denoise", work) == "done"
        assert job.plan is plan
    assert "nothing smaller fits: once more with memory that was freed" in caplog.text


def test_a_begun_job_keeps_its_tiles_or_says_that_they_do_not_fit(tmp_path: Path) -> None:
    with Engine.load("demo", config=config(tmp_path)) as engine:
        job = engine._memory.plan(engine._memory.job(SAMPLING, (512, 512)))
        assert job.plan.vae_tile is None
        job.keep_tile(128)
        assert job.plan.vae_tile == 128
        tiled = engine._memory.plan(engine._memory.job(SAMPLING, (512, 512)))
        engine._memory.machine = replace(
            engine._memory.machine, vram=job.plan.peak + job.plan.host.total + 2**20
        )
        tiled = engine._memory.plan(engine._memory.job(SAMPLING, (512, 512)))
        assert tiled.plan.vae_tile == 128
        with pytest.raises(
            BudgetError,
            match=r"at 512x512, begun with whole pictures \(others would change its pixels\), needs at least .* use "
            r"--ram \d+MiB$",
        ):
            tiled.keep_tile(None)


def test_a_job_after_one_whose_copy_failed_works(
    model: Path, conditioning: Conditioning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine.load(model, config=config(tmp_path, ram="220MiB"), size=(48, 32)) as engine:
        expected = engine.sample_video(conditioning, SAMPLING)
        read, failures = DiskWeights.read, [OSError(5, "the disk is gone")]

        def fail_once(self: DiskWeights, unit: int, out: torch.Tensor) -> None:
            if unit == 7 and failures:
                raise failures.pop()
            read(self, unit, out)

        monkeypatch.setattr(DiskWeights, "read", fail_once)
        with pytest.raises(OSError, match="the disk is gone"):
            engine.sample_video(conditioning, SAMPLING)
        assert torch.equal(engine.sample_video(conditioning, SAMPLING), expected)


def test_a_store_is_a_model_with_the_companions_of_its_source(tmp_path: Path) -> None:
    components = find_components("demo")
    checkpoint = dataclasses.replace(open_transformer(components.transformer), name="demo")
    store = convert(checkpoint, make_format("int8", torch.float32), tmp_path / "store")
    made: dict[str, list[torch.Tensor]] = {}
    for source, options in (("demo", {"precision": "int8"}), (store.folder, {"ram": "400MiB"})):
        with Engine.load(source, config=config(tmp_path, **options)) as engine:
            made[str(source)] = [section.frames for section in engine.generate(request())]
            assert engine.model_hash == checkpoint.source_hash
            assert engine.components.name == "demo"
    expected, actual = made.values()
    assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))
    assert find_model(str(store.folder)).shapes.transformer == checkpoint.config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bf16"}, "precision must be int8, as the store .* was made, got 'bf16'; leave it out"),
        ({"compute_dtype": "fp16"}, "compute_dtype must be fp32, as the store .* was made, got 'fp16'"),
    ],
)
def test_a_store_has_one_precision(tmp_path: Path, options: dict[str, str], message: str) -> None:
    checkpoint = open_transformer(find_components("demo").transformer)
    store = convert(checkpoint, make_format("int8", torch.float32), tmp_path / "store")
    with pytest.raises(ConfigError, match=message):
        Engine.load(store.folder, config=config(tmp_path, **options))


def test_the_plan_of_a_request_is_a_table(tmp_path: Path) -> None:
    with Engine.load("demo", config=config(tmp_path)) as engine:
        plan = engine.plan(request())
    assert plan.size == (64, 64)
    assert plan.fits
    assert "denoise" in str(plan)


def test_a_cancelled_job_gives_its_slots_back(
    model: Path, conditioning: Conditioning, tmp_path: Path
) -> None:
    with Engine.load(model, config=config(tmp_path, ram="220MiB"), size=(48, 32)) as engine:
        sections = engine.sample(conditioning, SAMPLING)
        next(sections)
        units = engine._memory.units
        assert isinstance(units, Streamer)
        assert units._slots
        sections.close()  # type: ignore[attr-defined]  # a generator
        assert not units._slots


def test_a_closed_engine_keeps_no_weights_of_the_blocks(tmp_path: Path) -> None:
    engine = Engine.load("demo", config=config(tmp_path))
    units = engine._memory.units
    assert isinstance(units, ResidentUnits)
    blobs = [weakref.ref(blob.untyped_storage()) for blob in units._blobs]
    del units
    engine.close()
    gc.collect()
    assert blobs
    assert not any(blob() for blob in blobs)


def test_the_allocator_gets_what_the_budget_leaves_beside_the_drivers_context(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []
    monkeypatch.setattr(MemoryShare, "set", lambda share, num_bytes: limits.append(num_bytes))
    engine = Engine.load(model, config=config(tmp_path))
    limits.clear()
    machine = replace(engine.machine, vram=6 * 2**30)
    engine._memory.set_budget(machine)
    engine._memory.set_budget(replace(machine, is_cpu=False))
    assert limits == [6 * 2**30, 6 * 2**30 - CONTEXT_BYTES]
