"""diffusers' FramePack pipeline gives the same frames with the engine's transformer in it, and what costs less runs."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoFramepackPipeline
from lora_cases import in_peft_names, layer_shapes, random_lora, saved
from PIL import Image
from torch import Tensor

from isoframe.engine import (
    CheckpointError,
    ConfigError,
    Engine,
    EngineConfig,
    LoraStrength,
    NumericalError,
    Request,
)
from isoframe.engine.companions.components import DEMO_FOLDER
from isoframe.engine.interfaces.diffusers import AcceleratedTransformer, accelerate, load_transformer, restore
from isoframe.engine.media.video import read_video_info
from isoframe.engine.weights.memory import MemoryShare
from isoframe.engine.weights.unit_streamer import Streamer

TYPES = ("inverted_anti_drifting", "vanilla")
TOLERANCE = 1e-4
pytestmark = pytest.mark.filterwarnings("ignore:.*SiglipImageProcessor.*")


@pytest.fixture(scope="module")
def pipe() -> HunyuanVideoFramepackPipeline:
    """The demo's pipeline with a VAE that takes milliseconds."""
    torch.manual_seed(0)
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=16, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    pipe = HunyuanVideoFramepackPipeline.from_pretrained(str(DEMO_FOLDER), vae=vae.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., EngineConfig]:
    return lambda **options: EngineConfig(device="cpu", cache_dir=tmp_path, local_files_only=True, **options)


@pytest.fixture
def accelerated(
    pipe: HunyuanVideoFramepackPipeline, config: Callable[..., EngineConfig]
) -> Iterator[Callable[..., AcceleratedTransformer]]:
    """Accelerates the pipeline until the end of the test."""

    def begin(options: dict[str, Any] | None = None, **arguments: Any) -> AcceleratedTransformer:
        return accelerate(pipe, config(**(options or {})), **arguments)

    yield begin
    if isinstance(pipe.transformer, AcceleratedTransformer):
        restore(pipe)


def image(name: str = "bounce") -> Image.Image:
    with Image.open(DEMO_FOLDER.parent / "examples" / f"{name}.png") as file:
        return file.convert("RGB")


def run(pipe: HunyuanVideoFramepackPipeline, sampling_type: str = TYPES[0], **changes: Any) -> Tensor:
    """Frames [1, T, 3, H, W] from 0 to 1 of two short sections."""
    options: dict[str, Any] = {
        "image": image(),
        "prompt": "a red circle bounces",
        "prompt_template": {"template": "{}", "crop_start": 0},
        "height": 64,
        "width": 64,
        "num_frames": 10,
        "latent_window_size": 2,
        "num_inference_steps": 4,
        "guidance_scale": 10.0,
        "output_type": "pt",
        "sampling_type": sampling_type,
        "generator": torch.Generator().manual_seed(0),
    }
    frames: Tensor = pipe(**options | changes).frames
    return frames


def latents(pipe: HunyuanVideoFramepackPipeline, sampling_type: str = TYPES[0], **changes: Any) -> Tensor:
    """Latents [B, 16, T, Y, X] of all sections."""
    history: list[Tensor] = run(pipe, sampling_type, output_type="latent", **changes)  # type: ignore[assignment]
    return history[-1]


def error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max())


def relative_rms(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).pow(2).mean().sqrt() / expected.pow(2).mean().sqrt())


@pytest.fixture(scope="module")
def expected(pipe: HunyuanVideoFramepackPipeline) -> Tensor:
    """Latents with diffusers' own transformer."""
    return latents(pipe)


def test_an_accelerated_pipeline_gives_the_same_frames(
    pipe: HunyuanVideoFramepackPipeline, accelerated: Callable[..., AcceleratedTransformer]
) -> None:
    own = [run(pipe, sampling_type, num_inference_steps=2) for sampling_type in TYPES]
    transformer = accelerated()
    assert pipe.transformer is transformer
    # What the last video shared must not reach the next one.
    ours = [run(pipe, sampling_type, num_inference_steps=2) for sampling_type in TYPES]
    assert error(own[0], own[1]) > 100 * TOLERANCE
    assert [error(*pair) <= TOLERANCE for pair in zip(ours, own, strict=True)] == [True, True]
    assert (transformer.num_computed, transformer.num_skipped) == (8, 0)


def test_true_guidance_and_several_videos_give_the_same_latents(
    pipe: HunyuanVideoFramepackPipeline, accelerated: Callable[..., AcceleratedTransformer]
) -> None:
    options: dict[str, Any] = {
        "prompt": ["a red circle bounces", "a blue square spins slowly"],
        "negative_prompt": ["a star", "a triangle"],
        "image": [image("bounce"), image("spin")],
        "true_cfg_scale": 2.0,
        "num_inference_steps": 2,
    }
    expected = latents(pipe, **options)
    transformer = accelerated()
    assert error(latents(pipe, **options), expected) <= TOLERANCE
    # 2 sections of 2 steps, for 2 videos with 2 branches each.
    assert transformer.num_computed == 16


def test_embeddings_that_a_callback_changes_are_taken(
    pipe: HunyuanVideoFramepackPipeline, accelerated: Callable[..., AcceleratedTransformer], expected: Tensor
) -> None:
    def change(_: object, step: int, __: object, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"prompt_embeds": tensors["prompt_embeds"] * 2} if step == 1 else {}

    options = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    changed = latents(pipe, **options)
    accelerated()
    assert error(changed, expected) > 100 * TOLERANCE
    assert error(latents(pipe, **options), changed) <= TOLERANCE


@pytest.mark.parametrize(
    ("options", "arguments", "most"),
    [
        ({"precision": "int8"}, {}, 0.05),
        ({"precision": "int8-weight"}, {}, 0.02),
        ({}, {"step_cache": "teacache"}, 0.3),
        ({}, {"step_cache": "magcache", "source": "demo"}, 0.3),
    ],
    ids=["int8", "int8-weight", "teacache", "magcache"],
)
def test_what_costs_less_runs_and_tells_what_it_skipped(
    pipe: HunyuanVideoFramepackPipeline,
    accelerated: Callable[..., AcceleratedTransformer],
    options: dict[str, Any],
    arguments: dict[str, Any],
    most: float,
) -> None:
    expected = latents(pipe, num_inference_steps=8)
    transformer = accelerated(options, **arguments)
    change = relative_rms(latents(pipe, num_inference_steps=8), expected)
    assert 0 < change < most
    assert transformer.num_computed + transformer.num_skipped == 16
    assert (transformer.num_skipped > 0) == ("step_cache" in arguments)


def test_weights_that_stream_give_the_same_latents(
    pipe: HunyuanVideoFramepackPipeline,
    accelerated: Callable[..., AcceleratedTransformer],
    expected: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("isoframe.engine.planning.planned_job._STORED_BYTES", 1)
    transformer = accelerated({"ram": "124MiB"})
    assert error(latents(pipe), expected) <= TOLERANCE
    assert transformer._memory is not None
    assert transformer._memory.plan.ring > 0


def test_slots_are_freed_before_decoding_also_after_a_video_with_true_guidance(
    pipe: HunyuanVideoFramepackPipeline,
    accelerated: Callable[..., AcceleratedTransformer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("isoframe.engine.planning.planned_job._STORED_BYTES", 1)
    transformer = accelerated({"ram": "124MiB"})
    run(pipe, num_inference_steps=2, negative_prompt="a star", true_cfg_scale=2.0)
    events: list[str] = []

    def record(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def recorded(*arguments: Any, **options: Any) -> Any:
            events.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(owner, name, recorded)

    record(AcceleratedTransformer, "velocity")
    record(Streamer, "suspend")
    record(pipe.vae, "decode")
    run(pipe, num_inference_steps=2)
    assert transformer._memory is not None
    assert transformer._memory.plan.ring > 0
    before = [earlier for earlier, event in itertools.pairwise(events) if event == "decode"]
    # Of both sections.
    assert before == ["suspend"] * 2


def test_a_lora_changes_what_diffusers_loading_of_it_changes(
    pipe: HunyuanVideoFramepackPipeline,
    accelerated: Callable[..., AcceleratedTransformer],
    expected: Tensor,
    tmp_path: Path,
) -> None:
    shapes = {name: shape for name, shape in layer_shapes(pipe.transformer).items() if "attn.to_" in name}
    layers = random_lora(shapes, alpha=0.6)
    path = saved(tmp_path / "style.safetensors", in_peft_names(layers))
    pipe.transformer.load_lora_adapter(in_peft_names(layers, is_folded=True), prefix="transformer")
    adapted = latents(pipe)
    pipe.transformer.unload_lora()
    accelerated(loras=(LoraStrength(source=path, strength=0.2),))
    assert error(adapted, expected) > 100 * TOLERANCE
    assert error(latents(pipe), adapted) <= TOLERANCE


def test_a_pipeline_without_a_transformer_takes_the_weights_of_a_source(
    pipe: HunyuanVideoFramepackPipeline, config: Callable[..., EngineConfig], expected: Tensor
) -> None:
    own = pipe.transformer
    pipe.transformer = None
    try:
        with pytest.raises(ConfigError, match="source must be given"):
            accelerate(pipe, config())
        transformer = accelerate(pipe, config(), source="demo")
        assert (
            transformer.config.in_channels == own.config["in_channels"] == transformer.config["in_channels"]
        )
        assert error(latents(pipe), expected) <= TOLERANCE
        restore(pipe)
        assert pipe.transformer is None
    finally:
        pipe.transformer = own


def test_what_the_pipelines_own_components_take_is_not_limited(
    accelerated: Callable[..., AcceleratedTransformer], monkeypatch: pytest.MonkeyPatch
) -> None:
    lifted: list[MemoryShare] = []
    monkeypatch.setattr(MemoryShare, "lift", lambda share: lifted.append(share))
    accelerated()
    assert len(lifted) == 1


def test_restoring_leaves_no_trace(
    pipe: HunyuanVideoFramepackPipeline, accelerated: Callable[..., AcceleratedTransformer], expected: Tensor
) -> None:
    before = dict(pipe.config), vars(pipe.scheduler).keys() - {"sigmas", "timesteps"}, pipe.transformer
    transformer = accelerated()
    assert (transformer.dtype, transformer.device.type) == (torch.float32, "cpu")
    assert transformer.config == before[2].config
    restore(pipe)
    assert (dict(pipe.config), vars(pipe.scheduler).keys() - {"sigmas", "timesteps"}) == before[:2]
    assert pipe.transformer is before[2]
    assert torch.equal(latents(pipe), expected)


def test_a_transformer_on_a_card_leaves_it_and_comes_back(
    pipe: HunyuanVideoFramepackPipeline,
    accelerated: Callable[..., AcceleratedTransformer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moves: list[str] = []
    own = pipe.transformer
    monkeypatch.setattr(type(own), "device", property(lambda _: torch.device("cuda", 1)))
    monkeypatch.setattr(type(own), "to", lambda _, device: moves.append(str(device)))
    accelerated()
    assert moves == ["cpu"]
    restore(pipe)
    assert moves == ["cpu", "cuda:1"]
    with pytest.raises(ConfigError):
        accelerated(loras=(LoraStrength(source="missing.safetensors"),))
    assert moves == ["cpu", "cuda:1"] * 2


def test_activations_of_16_bit_equal_those_of_the_single_forward(
    pipe: HunyuanVideoFramepackPipeline, accelerated: Callable[..., AcceleratedTransformer]
) -> None:
    own = pipe.transformer
    pipe.transformer = load_transformer("demo", dtype=torch.bfloat16)
    expected = latents(pipe)
    pipe.transformer = own
    transformer = accelerated({"precision": "bf16"})
    assert transformer.dtype == torch.bfloat16
    assert torch.equal(latents(pipe), expected)


def test_misuse_is_named_and_changes_nothing(
    pipe: HunyuanVideoFramepackPipeline, accelerated: Callable[..., AcceleratedTransformer], config: Any
) -> None:
    own, scheduler = pipe.transformer, pipe.scheduler
    with pytest.raises(ConfigError, match="must be accelerated, its transformer is a Hunyuan"):
        restore(pipe)
    with pytest.raises(ConfigError, match="must be a HunyuanVideoFramepackPipeline of diffusers, got object"):
        accelerate(object())
    with pytest.raises(ConfigError, match="sections of a LoRA must be None"):
        accelerated(loras=(LoraStrength(source="x", sections=(0,)),))
    with pytest.raises(ConfigError, match=r"a LoRA must be a \.safetensors file"):
        accelerated(loras=(LoraStrength(source="missing.safetensors"),))
    with torch.device("meta"):
        pipe.transformer = type(own).from_config(own.config)
    with pytest.raises(CheckpointError, match=r"must be in memory, .* accelerate before offloading"):
        accelerated()
    pipe.transformer = own
    assert "set_timesteps" not in vars(scheduler)
    accelerated()
    with pytest.raises(ConfigError, match="accelerated already"):
        accelerated()
    pipe.scheduler = type(scheduler).from_config(scheduler.config)
    with pytest.raises(ConfigError, match="put into the pipeline after accelerate"):
        latents(pipe)
    pipe.scheduler = scheduler


def test_broken_weights_are_refused_and_broken_results_stop_the_pipeline_after_a_section(
    pipe: HunyuanVideoFramepackPipeline, accelerated: Callable[..., AcceleratedTransformer]
) -> None:
    bias = pipe.transformer.proj_out.bias
    value = bias.detach().clone()
    bias.data[3] = torch.nan
    with pytest.raises(CheckpointError, match=r"proj_out\.bias has values that are not finite"):
        accelerated()
    bias.data.copy_(value)
    transformer = accelerated()
    transformer._model.memory.transformer.proj_out.bias.fill_(torch.nan)
    with pytest.raises(NumericalError, match="NaN or infinite at step 4 of section 1"):
        latents(pipe)


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_a_pipeline_that_diffusers_saved_loads_as_a_folder_and_makes_a_video(
    pipe: HunyuanVideoFramepackPipeline, config: Callable[..., EngineConfig], tmp_path: Path, order: str
) -> None:
    pipe.save_pretrained(tmp_path / "model")
    request = Request(
        image=image(), prompt="a red circle bounces", seconds=0.5, num_steps=2, latent_window_size=2, order=order,
        size=(64, 64),
    )  # fmt: skip
    with Engine.load(tmp_path / "model", config=config()) as engine:
        video = engine.render(request, tmp_path / "video.mp4")
    assert (video.num_frames, video.width, video.height) == (17, 64, 64)
    assert read_video_info(video.path).num_frames == 17
