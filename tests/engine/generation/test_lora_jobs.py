"""LoRAs in jobs: swapped between jobs and between sections, named, reported, refused before any work."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_cases import in_kohya_names, in_peft_names, layer_shapes, random_lora, saved
from PIL import Image
from straight_job import Job, Prompt, run_job
from tiny_models import IMAGE_WIDTH, POOLED_WIDTH, TEXT_WIDTH, relative_error, saved_model, tiny_model
from torch import Tensor

from isoframe.engine import (
    CheckpointError,
    Conditioning,
    ConfigError,
    Engine,
    EngineConfig,
    Event,
    LoraStrength,
    PhaseEvent,
    Request,
    SamplingConfig,
)
from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.jobs.metadata import video_metadata
from isoframe.engine.media.given import RequestImages
from isoframe.engine.model.lora_layers import LoraUnits
from isoframe.engine.model.units import UnitSource
from isoframe.engine.weights.memory import JobMemory

SHAPES = layer_shapes(tiny_model())
SAMPLING = SamplingConfig(num_sections=3, num_steps=3, latent_window_size=2, seed=4)


def conditioning() -> Conditioning:
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator)

    return Conditioning(
        text_embeds=draw(6, TEXT_WIDTH),
        text_mask=torch.ones(1, 6, dtype=torch.bool),
        pooled_embeds=draw(POOLED_WIDTH),
        image_embeds=draw(5, IMAGE_WIDTH),
        start_latent=draw(16, 1, 4, 6),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, and two LoRAs beside it; the second changes the blocks alone."""
    folder = tmp_path_factory.mktemp("model")
    saved_model(folder / "model")
    blocks = {
        name: shape for name, shape in SHAPES.items() if "attn" in name or "ff" in name or "mlp" in name
    }
    saved(folder / "style.safetensors", in_kohya_names(random_lora(SHAPES, alpha=1.5)))
    saved(folder / "face.safetensors", in_kohya_names(random_lora(blocks, alpha=1.5, seed=2)))
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return Engine.load(folder / "model", config=EngineConfig(device="cpu"))


def run(engine: Engine, *loras: LoraStrength, **changes: Any) -> list[Tensor]:
    """Latents of the sections in generation order."""
    sampling = dataclasses.replace(SAMPLING, loras=loras, **changes)
    return [section.latents for section in engine.sample(conditioning(), sampling)]


def are_equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(*pair) for pair in zip(one, other, strict=True))


@pytest.mark.parametrize(
    "options", [{}, {"order": "forward"}, {"step_cache": "teacache", "step_cache_threshold": 50.0}], ids=str
)
def test_a_job_with_lora_equals_the_straight_job_with_peft(
    engine: Engine, folder: Path, options: dict[str, Any]
) -> None:
    sampling = dataclasses.replace(
        SAMPLING, loras=(LoraStrength(source=folder / "style.safetensors", strength=0.8),), **options
    )
    model = tiny_model()
    layers = random_lora(SHAPES, alpha=1.2)
    model.load_lora_adapter(in_peft_names(layers, is_folded=True), prefix="transformer")
    c = conditioning()
    prompt = Prompt(text=c.text_embeds, mask=c.text_mask, pooled=c.pooled_embeds)
    job = Job(
        positive=prompt, negative=prompt, image_embeds=c.image_embeds, start_latent=c.start_latent,
        num_sections=sampling.num_sections, num_steps=sampling.num_steps, order=sampling.order,
        guidance_scale=sampling.guidance_scale, cfg_scale=1.0, cfg_rescale=0.0, seed=sampling.seed,
        window=sampling.latent_window_size, sampler="unipc",
        teacache_threshold=sampling.step_cache_threshold if options.get("step_cache") else None, paddings=None,
    )  # fmt: skip
    expected, _ = run_job(model, job)
    plain = engine.sample_video(c, dataclasses.replace(sampling, loras=()))
    assert relative_error(plain, expected) > 1e-2
    assert relative_error(engine.sample_video(c, sampling), expected) <= 1e-5


def test_jobs_with_other_loras_leave_no_trace(engine: Engine, folder: Path) -> None:
    style, face = (LoraStrength(source=folder / f"{name}.safetensors") for name in ("style", "face"))
    plain, with_style, with_face = run(engine), run(engine, style), run(engine, face)
    assert not are_equal(plain, with_style)
    assert not are_equal(with_style, with_face)
    assert are_equal(run(engine, style), with_style)
    assert are_equal(run(engine), plain)


def test_jobs_side_by_side_keep_their_own_loras(engine: Engine, folder: Path) -> None:
    """Two generators of one engine, asked in turns."""
    style = LoraStrength(source=folder / "style.safetensors")
    plain = engine.sample(conditioning(), SAMPLING)
    styled = engine.sample(conditioning(), dataclasses.replace(SAMPLING, loras=(style,)))
    pairs = [(one.latents, other.latents) for one, other in zip(plain, styled, strict=True)]
    assert are_equal([one for one, _ in pairs], run(engine))
    assert are_equal([other for _, other in pairs], run(engine, style))


def test_strength_0_is_no_lora_bit_for_bit(engine: Engine, folder: Path) -> None:
    style = LoraStrength(source=folder / "style.safetensors", strength=0)
    assert are_equal(run(engine, style), run(engine))


@pytest.mark.parametrize("name", ["style", "face"])
def test_a_lora_of_one_section_changes_it_and_what_follows(engine: Engine, folder: Path, name: str) -> None:
    plain = run(engine)
    some = run(engine, LoraStrength(source=folder / f"{name}.safetensors", sections=(1,)))
    assert torch.equal(some[0], plain[0])
    assert not torch.equal(some[1], plain[1])
    everywhere = run(engine, LoraStrength(source=folder / f"{name}.safetensors"))
    assert not torch.equal(some[1], everywhere[1]), "section 1 continues another section 0"
    assert not torch.equal(some[2], everywhere[2])


def test_the_sections_of_one_lora_may_have_other_strengths(engine: Engine, folder: Path) -> None:
    path = folder / "style.safetensors"
    split = run(
        engine,
        LoraStrength(source=path, strength=0.5, sections=(0, 2)),
        LoraStrength(source=path, strength=-1, sections=(1,)),
    )
    half = run(engine, LoraStrength(source=path, strength=0.5))
    assert torch.equal(split[0], half[0])
    assert not torch.equal(split[1], half[1])
    whole = run(engine, LoraStrength(source=path, strength=0.5, sections=(0, 1, 2)))
    assert are_equal(whole, half)


def test_invariants_are_prepared_once_while_the_loras_stay(engine: Engine, folder: Path) -> None:
    path = folder / "style.safetensors"
    for uses, num_prepared in (
        ((), 1),
        ((LoraStrength(source=path),), 1),
        ((LoraStrength(source=path, sections=(2,)),), 2),
        ((LoraStrength(source=path, sections=(1,)),), 3),
    ):
        events: list[Event] = []
        sampling = dataclasses.replace(SAMPLING, loras=uses)
        list(engine.sample(conditioning(), sampling, on_event=events.append))
        phases = [event.phase for event in events if isinstance(event, PhaseEvent)]
        assert phases.count("prepare") == num_prepared
        assert phases[0] == "prepare"


def test_a_loaded_lora_is_called_by_its_name(engine: Engine, folder: Path) -> None:
    assert engine.load_lora(folder / "style.safetensors") == "style"
    assert engine.load_lora(folder / "face.safetensors", name="hero") == "hero"
    assert engine.load_lora(folder / "face.safetensors", name="hero") == "hero", "again is no conflict"
    assert engine.loras == ("style", "hero")
    by_path = run(engine, LoraStrength(source=folder / "face.safetensors"))
    assert are_equal(run(engine, LoraStrength(source="hero")), by_path)
    with pytest.raises(ConfigError, match=r"name must be new, got 'hero', which is .*face\.safetensors"):
        engine.load_lora(folder / "style.safetensors", name="hero")
    with pytest.raises(
        ConfigError, match=r"got 'styl': .* does not exist.*loaded are: style, hero; did you mean 'style'"
    ):
        run(engine, LoraStrength(source="styl"))
    engine.unload_lora("hero")
    engine.unload_lora(folder / "style.safetensors")
    assert engine.loras == ()
    with pytest.raises(ConfigError, match="no LoRA 'hero' is loaded"):
        engine.unload_lora("hero")


def test_a_file_is_read_once_and_again_when_it_has_changed(
    engine: Engine, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isoframe.engine.checkpoints import lora as lora_library

    reads: list[object] = []
    read = lora_library.read_lora
    monkeypatch.setattr(
        lora_library, "read_lora", lambda path, *names: reads.append(path) or read(path, *names)
    )
    path = tmp_path / "mine.safetensors"
    path.write_bytes((folder / "style.safetensors").read_bytes())
    use = LoraStrength(source=path)
    first = run(engine, use)
    assert are_equal(run(engine, use), first)
    assert len(reads) == 1
    path.write_bytes((folder / "face.safetensors").read_bytes())
    assert not are_equal(run(engine, use), first)
    assert len(reads) == 2


def test_a_lora_that_cannot_work_is_refused_before_anything_runs(
    engine: Engine, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        engine.sample(conditioning(), dataclasses.replace(SAMPLING, loras=(LoraStrength(source="none"),)))
    bad = saved(tmp_path / "bad.safetensors", in_kohya_names(random_lora({"proj_out": (3, 4)})))
    with pytest.raises(CheckpointError, match="1 misshapen: lora_unet_proj_out"):
        engine.sample(conditioning(), dataclasses.replace(SAMPLING, loras=(LoraStrength(source=bad),)))
    image = tmp_path / "start.png"
    Image.new("RGB", (64, 64)).save(image)
    with pytest.raises(CheckpointError, match="1 misshapen"):
        engine.generate(Request(image=image, prompt="", loras=(LoraStrength(source=bad),)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LoraStrength(source=""), "source of a LoRA must be a file or a name"),
        (
            lambda: LoraStrength(source="a", strength=float("nan")),
            "strength of a LoRA must be a finite number, got nan",
        ),
        (
            lambda: LoraStrength(source="a", strength="1"),
            "strength of a LoRA must be a finite number, got '1'",
        ),  # type: ignore[arg-type]  # that is the case
        (
            lambda: LoraStrength(source="a", sections=(-1,)),
            "sections of a LoRA must be an integer of at least 0",
        ),
        (
            lambda: SamplingConfig(num_sections=2, loras=(LoraStrength(source="a", sections=(2,)),)),
            r"sections of a LoRA must be below num_sections = 2, got \(2,\)",
        ),
        (
            lambda: Request(
                image="", prompt="", seconds=2.4, loras=(LoraStrength(source="a", sections=(0, 2)),)
            ),
            r"sections of a LoRA must be below num_sections = 2, got \(0, 2\) \(counted from 0; --lora counts from 1\)",
        ),
        (lambda: Request(image="", prompt="", loras=("a",)), "loras must be a tuple of LoraStrength"),  # type: ignore[arg-type]  # that is the case
    ],
)
def test_a_bad_use_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_metadata_name_the_loras_without_their_folders(engine: Engine, folder: Path) -> None:
    use = LoraStrength(source=folder / "style.safetensors", strength=0.5, sections=(0,))
    lora = engine._denoiser.loras.find(use.source)
    request = Request(image="photos/me.png", prompt="", loras=(use,))
    images = RequestImages(size=(8, 8), given_size=(8, 8), start=Image.new("RGB", (8, 8)), end=None)
    metadata = video_metadata(
        request,
        request.sampling(),
        images,
        loras=[lora],
        model="m",
        identity={"model_hash": "h", "frame_filter": None},
    )
    assert (metadata["model_hash"], "frame_filter" in metadata) == ("h", False)
    expected = [
        {"source": "style.safetensors", "sha256": lora.content_hash, "strength": 0.5, "sections": [0]}
    ]
    assert metadata["request"]["loras"] == metadata["sampling"]["loras"] == expected
    assert str(folder) not in str(metadata)


def test_a_plan_counts_the_loras_wherever_they_are_on_the_device(engine: Engine, folder: Path) -> None:
    """The most that is at work together: not the sum over sections."""

    def planned(*loras: LoraStrength) -> dict[str, int]:
        sampling = dataclasses.replace(SAMPLING, loras=loras)
        job = engine._memory.job(sampling, (64, 64))
        lora_bytes = engine._denoiser.lora_bytes(sampling)
        memory = engine._memory.plan(dataclasses.replace(job, lora_bytes=lora_bytes))
        return {phase.name: phase.total for phase in memory.plan.phases}

    style, face = folder / "style.safetensors", folder / "face.safetensors"
    plain, one = planned(), planned(LoraStrength(source=style))
    both = planned(LoraStrength(source=style), LoraStrength(source=face))
    in_turns = planned(LoraStrength(source=style, sections=(0,)), LoraStrength(source=face, sections=(1,)))
    for phase in ("prepare", "denoise", "VAE decode"):
        assert plain[phase] < one[phase] < both[phase]
        assert in_turns[phase] == one[phase]
    for phase in ("text encode", "image encode", "VAE encode"):
        assert plain[phase] == both[phase]


def test_a_lora_follows_the_units_and_the_chunks_of_the_job(
    engine: Engine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan may move the units or cut the MLP between two sections, or again after a section ran out of memory."""
    style = LoraStrength(source=folder / "style.safetensors", strength=0.5)
    expected = run(engine, style)
    failures = [torch.OutOfMemoryError("no memory")]
    denoise = engine._denoiser._denoise

    def fail_once(*arguments: Any) -> Tensor:
        if failures:
            raise failures.pop()
        return denoise(*arguments)

    used: list[tuple[bool, int | None]] = []
    place, step = JobMemory.place, PackedTransformer.step
    moved: list[UnitSource] = []

    def place_elsewhere(self: JobMemory) -> tuple[UnitSource, int | None]:
        moved.append(MovedUnits(place(self)[0]))
        return moved[-1], 64

    def watch(self: PackedTransformer, *arguments: Any) -> Any:
        *_, context = arguments
        assert isinstance(context.units, LoraUnits)
        used.append((context.units.base is moved[-1], context.token_chunk))
        return step(self, *arguments)

    monkeypatch.setattr(engine._denoiser, "_denoise", fail_once)
    monkeypatch.setattr(JobMemory, "place", place_elsewhere)
    monkeypatch.setattr(PackedTransformer, "step", watch)
    actual = run(engine, style)
    assert used == [(True, 64)] * (SAMPLING.num_sections * SAMPLING.num_steps)
    for one, other in zip(actual, expected, strict=True):
        assert relative_error(one, other) <= 1e-5


class MovedUnits:
    """The same units in another place."""

    def __init__(self, units: UnitSource) -> None:
        self.acquire, self.release = units.acquire, units.release
