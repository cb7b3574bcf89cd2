"""Formulas of bytes and parameters against the modules that they are about, on the meta device."""

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import transformers
from diffusers import AutoencoderKLHunyuanVideo
from published_config import PUBLISHED
from storage_tracker import StorageTracker
from torch import Tensor, nn

from isoframe.engine.families.framepack.model_sizes import ModelShapes, published_shapes
from isoframe.engine.families.framepack.step_sizes import DenoiseShape, packed_sequence, weight_sizes
from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.families.framepack.transformer_config import TransformerConfig
from isoframe.engine.families.framepack.unit_layout import unit_specs
from isoframe.engine.families.framepack.vae_sizes import VaeWork
from isoframe.engine.model.precision import PRECISIONS, find_precision
from isoframe.engine.model.units import UnitLayout
from isoframe.engine.request.schedule import published_schedule
from isoframe.quant import make_format

META = torch.device("meta")
SHAPES = published_shapes()
CONFIG = SHAPES.transformer


def peak(weights: Iterable[Tensor], run: Callable[[], object]) -> int:
    tracker = StorageTracker(weights)
    with tracker:
        run()
    return tracker.peak


def params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]


@pytest.fixture(scope="module")
def transformer() -> PackedTransformer:
    return PackedTransformer(CONFIG, torch.bfloat16, META, has_fp32_head=True)


def test_the_built_in_shapes_are_the_published_ones() -> None:
    assert TransformerConfig.from_dict(PUBLISHED, source="test") == CONFIG


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "int8", "int8-weight", "fp8", "nf4"])
def test_units_have_the_size_of_their_layout(precision: str) -> None:
    layouts = [UnitLayout(spec, make_format(precision, torch.bfloat16)) for spec in unit_specs(CONFIG)]
    assert weight_sizes(CONFIG, PRECISIONS[precision]).units == tuple(layout.num_bytes for layout in layouts)


def test_weights_outside_the_units_are_all_counted_once(transformer: PackedTransformer) -> None:
    step = ("x_embedder.", "clean_x_embedder.", "proj_out.")
    is_head_norm = {f"norm_{added}{part}.weight" for added in ("", "added_") for part in "qk"}
    once_bytes = step_bytes = 0
    for name, destination in transformer.destinations.items():
        if name.startswith(step) or ("blocks." in name and name.rpartition("attn.")[2] in is_head_norm):
            step_bytes += destination.num_bytes
        elif not name.startswith(("transformer_blocks", "single_transformer")) or ".norm" in name:
            once_bytes += destination.num_bytes
    assert weight_sizes(CONFIG, PRECISIONS["bf16"]).once == once_bytes
    fp32_head = 4 * 64 * 3073
    assert weight_sizes(CONFIG, PRECISIONS["bf16"]).per_step == step_bytes + fp32_head


def test_preparing_a_job_peaks_below_its_formula(transformer: PackedTransformer) -> None:
    shape = DenoiseShape(
        config=CONFIG,
        precision=find_precision("bf16"),
        sequence=packed_sequence(CONFIG, (640, 608), published_schedule("inverted", 9), 729, 256),
        num_steps=25,
    )

    @torch.inference_mode()
    def prepare() -> None:
        def empty(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.empty(size, dtype=dtype, device=META)

        vision = transformer.project_image(empty(1, 729, 1152))
        steps, pooled = empty(25, dtype=torch.float32), empty(1, 768)
        transformer.prepare_job(steps, 10_000.0, empty(1, 256, 4096), None, pooled, vision)

    weights = [d.tensor for d in transformer.destinations.values() if hasattr(d, "tensor")]
    measured = peak(weights, prepare)
    assert measured <= shape.prepare_bytes() <= 1.25 * measured


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLHunyuanVideo:
    with META:
        return AutoencoderKLHunyuanVideo().half().eval()


def test_the_vae_has_the_parameters_of_its_formula(vae: AutoencoderKLHunyuanVideo) -> None:
    assert SHAPES.vae.num_params == params(vae) == 246_478_803


@pytest.mark.parametrize(("size", "tile"), [((640, 608), None), ((256, 320), 256), ((192, 192), 128)])
def test_decoding_peaks_at_most_two_percent_below_its_formula(
    vae: AutoencoderKLHunyuanVideo, size: tuple[int, int], tile: int | None
) -> None:
    work = VaeWork(vae=SHAPES.vae, size=size, tile=tile)
    # Chunks of 5, 5 and 2 latent frames.
    latents = torch.empty(1, 16, 8, size[0] // 8, size[1] // 8, dtype=torch.float16, device=META)
    with torch.no_grad():
        measured = peak([*tensors(vae), latents], lambda: tiled(vae, tile).decode(latents))
    assert measured <= work.decode_bytes(8) <= 1.02 * measured


@pytest.mark.parametrize(
    ("size", "tile", "num_frames"),
    [((640, 608), None, 1), ((640, 608), None, 17), ((640, 608), 256, 1), ((256, 320), 256, 29)],
)
def test_encoding_peaks_at_most_a_tenth_below_its_formula(
    vae: AutoencoderKLHunyuanVideo, size: tuple[int, int], tile: int | None, num_frames: int
) -> None:
    work = VaeWork(vae=SHAPES.vae, size=size, tile=tile)
    pixels = torch.empty(1, 3, num_frames, *size, dtype=torch.float16, device=META)
    with torch.no_grad():
        measured = peak([*tensors(vae), pixels], lambda: tiled(vae, tile).encode(pixels))
    # The pixels are in the formula, and small beside a picture's blocks.
    measured += pixels.nbytes
    assert measured <= work.encode_bytes(num_frames) <= 1.15 * measured


def tiled(vae: AutoencoderKLHunyuanVideo, tile: int | None) -> AutoencoderKLHunyuanVideo:
    vae.use_tiling = tile is not None
    if tile is not None:
        stride = tile * 3 // 4
        vae.enable_tiling(
            tile_sample_min_height=tile,
            tile_sample_min_width=tile,
            tile_sample_stride_height=stride,
            tile_sample_stride_width=stride,
        )
    return vae


# TFLOP of decoding 18 latent frames at 480x832: whole pictures, and tiles of 256 px.
@pytest.mark.parametrize(("tile", "tflop"), [(None, 669), (256, 1093)])
def test_decoding_counts_the_arithmetic_of_its_chunks_and_tiles(tile: int | None, tflop: int) -> None:
    assert VaeWork(vae=SHAPES.vae, size=(480, 832), tile=tile).decode_flops(18) / 1e12 == pytest.approx(
        tflop, rel=1e-3
    )


def llama() -> tuple[nn.Module, dict[str, Any]]:
    # Three of the 30 layers: they run one after the other.
    config = transformers.LlamaConfig(
        hidden_size=4096,
        num_hidden_layers=3,
        num_attention_heads=32,
        num_key_value_heads=8,
        intermediate_size=14336,
        vocab_size=128320,
    )
    model = transformers.LlamaModel(config)
    model.norm = nn.Identity()
    return model, {"input_ids": torch.zeros((1, 351), dtype=torch.long)}


def siglip() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.SiglipVisionConfig(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=384,
        patch_size=14,
    )
    config.vision_use_head = False
    return transformers.SiglipVisionModel(config), {
        "pixel_values": torch.empty((1, 3, 384, 384), dtype=torch.float16)
    }


def clip() -> tuple[nn.Module, dict[str, Any]]:
    config = transformers.CLIPTextConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
    )
    return transformers.CLIPTextModel(config), {"input_ids": torch.zeros((1, 77), dtype=torch.long)}


@pytest.mark.parametrize(
    ("make", "name", "left_out"),
    [(llama, "text_encoder", 27), (siglip, "image_encoder", 0), (clip, "text_encoder_2", 0)],
    ids=["llama", "siglip", "clip"],
)
def test_encoders_have_the_parameters_and_peak_of_their_formulas(
    make: Callable[[], tuple[nn.Module, dict[str, Any]]], name: str, left_out: int
) -> None:
    with META:
        model, inputs = make()
    model = model.half().eval()
    shape = getattr(SHAPES, name)
    assert shape.num_params - left_out * shape.layer_params == params(model)
    # Outside of inference mode this model's attention holds its scores, which is the most that it can hold.
    with torch.no_grad():
        measured = peak([*tensors(model), *inputs.values()], lambda: model(**inputs))
    assert measured <= shape.activation_bytes(2) <= 1.2 * measured


def test_a_model_with_other_companions_has_their_shapes() -> None:
    vae = {"latent_channels": 16, "block_out_channels": [16, 32, 64, 64], "layers_per_block": 1}
    shapes = ModelShapes.from_configs("small", CONFIG, {"vae": vae})
    with META:
        model = AutoencoderKLHunyuanVideo(
            block_out_channels=(16, 32, 64, 64), layers_per_block=1, norm_num_groups=1
        )
    assert shapes.vae.num_params == params(model)
    assert shapes.text_encoder == SHAPES.text_encoder
