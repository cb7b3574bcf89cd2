"""LoRAs beside the weights: against diffusers with PEFT, in every naming, on every kind of weights."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from disturbed_copies import BlobWeights, PoisonedCopies
from lora_cases import (
    Layer,
    in_dotted_kohya_names,
    in_kohya_names,
    in_peft_names,
    layer_shapes,
    random_lora,
    random_tencent_lora,
    read_lora,
    saved,
    split_tencent,
)
from packed_steps import blobs_of, layouts_of, one_step
from published_config import PUBLISHED
from tiny_models import forward_inputs, relative_error, saved_model, tiny_model
from torch import Tensor

from isoframe.engine.checkpoints.lora import ActiveLoras, Lora, merge
from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.families.framepack.transformer_config import TransformerConfig
from isoframe.engine.families.framepack.unit_layout import unit_specs
from isoframe.engine.families.opening import open_transformer
from isoframe.engine.interfaces.diffusers import FramepackTransformer, load_transformer
from isoframe.engine.model import lora_layers as low_rank
from isoframe.engine.model.outer_weights import LoraLinear
from isoframe.engine.weights.conversion import convert
from isoframe.engine.weights.transformer_from_store import open_units, stored_transformer
from isoframe.engine.weights.unit_streamer import Streamer
from isoframe.engine.weights.work_streams import CallerStream, ThreadStream
from isoframe.quant import make_format
from isoframe.quant.fp8 import Fp8Linear
from isoframe.quant.int8 import Int8Linear

TOLERANCE = 1e-5
CPU = torch.device("cpu")
INPUTS = forward_inputs((5, 7), num_valid_text=(7,), num_text=9)
SHAPES = layer_shapes(tiny_model())

Naming = Callable[[Mapping[str, Layer]], dict[str, Tensor]]
NAMINGS: dict[str, Naming] = {
    "diffusers": lambda lora: in_peft_names(lora, "transformer.", is_folded=True),
    "peft": lambda lora: in_peft_names(lora, "base_model.model.", is_folded=True),
    "bare": lambda lora: in_peft_names(lora, "", is_folded=True),
    "kohya": in_kohya_names,
    "comfy": in_dotted_kohya_names,
    "named-adapter": lambda lora: {
        name.replace(".weight", ".style.weight"): tensor
        for name, tensor in in_peft_names(lora, is_folded=True).items()
    },
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> FramepackTransformer:
    folder = tmp_path_factory.mktemp("model")
    saved_model(folder)
    return load_transformer(folder)


def velocity(
    ours: FramepackTransformer, loras: ActiveLoras, inputs: dict[str, Tensor] | None = None
) -> Tensor:
    """Of one forward with ``loras``; the model is as before after it."""
    base = ours.transformer
    ours.transformer = base.with_loras(loras)
    try:
        sample: Tensor = ours(**(inputs or INPUTS)).sample
    finally:
        ours.transformer = base
    return sample


def expected_velocity(
    *loras: tuple[Mapping[str, Layer], float], inputs: dict[str, Tensor] | None = None
) -> Tensor:
    """By diffusers' class with PEFT adapters."""
    model = tiny_model()
    names = [f"adapter{i}" for i in range(len(loras))]
    for name, (lora, _) in zip(names, loras, strict=True):
        model.load_lora_adapter(in_peft_names(lora, is_folded=True), prefix="transformer", adapter_name=name)
    model.set_adapters(names, [strength for _, strength in loras])
    with torch.no_grad():
        sample: Tensor = model(**(inputs or INPUTS)).sample
    return sample


@cache
def all_layers() -> tuple[dict[str, Layer], Tensor]:
    lora = random_lora(SHAPES, alpha=4.5)
    return lora, expected_velocity((lora, 1.0))


@cache
def all_tencent_layers() -> tuple[dict[str, Layer], Tensor]:
    lora = random_tencent_lora(SHAPES, alpha=4.5)
    return lora, expected_velocity((split_tencent(lora, SHAPES), 1.0))


def read(folder: Path, lora: Mapping[str, Layer], naming: str = "kohya") -> Lora:
    return read_lora(saved(folder / f"{naming}.safetensors", NAMINGS[naming](lora)), SHAPES)


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_layer_in_every_naming_equals_peft(
    ours: FramepackTransformer, tmp_path: Path, naming: str
) -> None:
    layers, expected = all_layers()
    assert relative_error(velocity(ours, []), expected) > 0.1, "the LoRA matters"
    assert relative_error(velocity(ours, [(read(tmp_path, layers, naming), 1.0)]), expected) <= TOLERANCE


@pytest.mark.parametrize("naming", NAMINGS)
def test_tencent_names_in_every_form_equal_peft(
    ours: FramepackTransformer, tmp_path: Path, naming: str
) -> None:
    layers, expected = all_tencent_layers()
    assert relative_error(velocity(ours, []), expected) > 0.1, "the LoRA matters"
    assert relative_error(velocity(ours, [(read(tmp_path, layers, naming), 1.0)]), expected) <= TOLERANCE


@pytest.mark.parametrize("layer", sorted(SHAPES))
def test_no_layer_is_forgotten(ours: FramepackTransformer, tmp_path: Path, layer: str) -> None:
    """The parity tests allow an error that a forgotten small layer might hide in; alone it cannot."""
    lora = read(tmp_path, random_lora({layer: SHAPES[layer]}, alpha=9.0))
    assert relative_error(velocity(ours, [(lora, 1.0)]), velocity(ours, [])) > 1e-5


def test_a_partly_stacked_layer_equals_peft(ours: FramepackTransformer, tmp_path: Path) -> None:
    """LoRAs on k, on q and v, or on the MLP alone: the others of the stack stay as they are."""
    for ending in ("to_k", "to_q", "to_v", "add_k_proj", "proj_mlp"):
        layers = random_lora({name: shape for name, shape in SHAPES.items() if name.endswith(ending)})
        actual = velocity(ours, [(read(tmp_path, layers), 1.0)])
        assert relative_error(actual, expected_velocity((layers, 1.0))) <= TOLERANCE, ending


# PEFT warns of what this is about.
@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_several_with_strengths_equal_peft(ours: FramepackTransformer, tmp_path: Path) -> None:
    some = {name: shape for name, shape in SHAPES.items() if "attn" in name or "norm" in name}
    first, second = (
        random_lora(SHAPES, rank=2, alpha=2.0, seed=3),
        random_lora(some, rank=5, alpha=7.0, seed=4),
    )
    loras = [(read(tmp_path, first), 0.7), (read(tmp_path, second), -0.4)]
    actual = velocity(ours, loras)
    assert relative_error(actual, expected_velocity((first, 0.7), (second, -0.4))) <= TOLERANCE


def test_layers_of_other_rank_and_alpha_equal_peft(ours: FramepackTransformer, tmp_path: Path) -> None:
    layers = {
        name: layer
        for i, (name, shape) in enumerate(SHAPES.items())
        for name, layer in random_lora({name: shape}, rank=1 + i % 4, alpha=0.5 + i % 3, seed=i).items()
    }
    actual = velocity(ours, [(read(tmp_path, layers), 1.0)])
    assert relative_error(actual, expected_velocity((layers, 1.0))) <= TOLERANCE


@pytest.mark.parametrize("options", [{"lora_alpha": 6}, {"lora_alpha": 6, "use_rslora": True}], ids=str)
def test_the_alpha_in_diffusers_own_files_counts(
    ours: FramepackTransformer, tmp_path: Path, options: dict[str, Any]
) -> None:
    """Saved by diffusers, which keeps alpha in the file's metadata alone."""
    from peft import LoraConfig

    model = tiny_model()
    pattern = {"single_transformer_blocks.1.proj_out": 11}
    model.add_adapter(
        LoraConfig(
            r=4, target_modules=["to_q", "to_v", "proj_out", "net.2"], alpha_pattern=pattern, **options
        )
    )
    draw_adapter(model)
    model.save_lora_adapter(tmp_path, weight_name="style.safetensors")
    with torch.no_grad():
        expected = model(**INPUTS).sample
    lora = read_lora(tmp_path / "style.safetensors", SHAPES)
    assert relative_error(velocity(ours, [(lora, 1.0)]), expected) <= TOLERANCE


def test_the_alpha_in_pefts_own_folders_counts(ours: FramepackTransformer, tmp_path: Path) -> None:
    """Saved by PEFT, which keeps alpha in a file beside the weights."""
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(tiny_model(), LoraConfig(r=4, lora_alpha=10, target_modules=["to_k", "proj_mlp"]))
    draw_adapter(model)
    model.save_pretrained(str(tmp_path))
    with torch.no_grad():
        expected = model(**INPUTS).sample
    assert relative_error(velocity(ours, [(read_lora(tmp_path, SHAPES), 1.0)]), expected) <= TOLERANCE


def draw_adapter(model: torch.nn.Module) -> None:
    """lora_B starts at zero, which would prove nothing."""
    generator = torch.Generator().manual_seed(8)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) / 6


def test_fused_names_equal_diffusers_converter_at_the_published_width(tmp_path: Path) -> None:
    """diffusers' converter knows the width 3072 alone.

    Two layers are left out: it cuts their down factors too (of the refiner's qkv, and of the output norm), so that
    the products are other ones.
    """
    from diffusers.loaders.lora_conversion_utils import _convert_hunyuan_video_lora_to_diffusers

    few = {"num_layers": 2, "num_single_layers": 2}
    config = TransformerConfig.from_dict(PUBLISHED | few, source="test")
    shapes = PackedTransformer(config, torch.float32, torch.device("meta")).layer_shapes
    layers = random_tencent_lora(shapes, rank=2, alpha=2.0)
    layers = {
        name: layer
        for name, layer in layers.items()
        if "self_attn_qkv" not in name and name != "final_layer.adaLN_modulation.1"
    }
    state = in_peft_names(layers)
    lora = read_lora(saved(tmp_path / "wide.safetensors", state), shapes)
    converted = _convert_hunyuan_video_lora_to_diffusers(dict(state))
    assert {f"transformer.{name}.lora_{side}.weight" for name in lora.factors for side in "AB"} == set(
        converted
    )
    for name, factors in lora.factors.items():
        assert torch.equal(factors.down, converted[f"transformer.{name}.lora_A.weight"].flatten(1)), name
        assert torch.equal(factors.up, converted[f"transformer.{name}.lora_B.weight"].flatten(1)), name


def test_strength_0_is_no_lora_bit_for_bit(ours: FramepackTransformer, tmp_path: Path) -> None:
    lora = read(tmp_path, all_layers()[0])
    assert torch.equal(velocity(ours, [(lora, 0.0)]), velocity(ours, []))
    assert ours.transformer.with_loras([(lora, 0.0)]) is ours.transformer


def test_a_hot_swap_leaves_no_trace(ours: FramepackTransformer, tmp_path: Path) -> None:
    before = {name: stored_bytes(destination) for name, destination in ours.transformer.destinations.items()}
    first, second = (read(tmp_path, random_lora(SHAPES, seed=seed)) for seed in (1, 2))
    plain, with_first = velocity(ours, []), velocity(ours, [(first, 1.0)])
    assert not torch.equal(with_first, velocity(ours, [(second, 1.0)]))
    assert torch.equal(velocity(ours, [(first, 1.0)]), with_first)
    assert torch.equal(velocity(ours, []), plain)
    after = {name: stored_bytes(destination) for name, destination in ours.transformer.destinations.items()}
    assert before == after


def stored_bytes(destination: Any) -> bytes:
    tensors = [destination.tensor] if hasattr(destination, "tensor") else destination.views.values()
    return b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)


def test_strengths_of_one_lora_add_up(ours: FramepackTransformer, tmp_path: Path) -> None:
    lora = read(tmp_path, all_layers()[0])
    assert (
        relative_error(velocity(ours, [(lora, 0.3), (lora, 0.5)]), velocity(ours, [(lora, 0.8)])) <= TOLERANCE
    )


def test_weights_are_shared_with_the_base(ours: FramepackTransformer, tmp_path: Path) -> None:
    """A LoRA costs its own factors: the one thing that is copied is a patch embedding that it changes."""
    base = ours.transformer
    adapted = base.with_loras([(read(tmp_path, all_layers()[0]), 1.0)])
    assert adapted.dual_blocks is base.dual_blocks
    assert isinstance(adapted.proj_out, LoraLinear)
    assert adapted.proj_out.base is base.proj_out
    units = adapted.context().units
    assert isinstance(units, low_rank.LoraUnits)
    assert units.base is base.units


def test_the_bytes_that_a_plan_counts_are_those_of_the_branches(
    ours: FramepackTransformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = {name: shape for name, shape in SHAPES.items() if "to_q" in name or "mlp" in name}
    loras = [(read(tmp_path, all_layers()[0]), 1.0), (read(tmp_path, random_lora(some, rank=7)), 0.5)]
    units = ours.transformer.with_loras(loras).context().units
    assert isinstance(units, low_rank.LoraUnits)
    branches = [branch for unit in units._branches for branch in unit.values()]
    held = sum(branch.down.nbytes + sum(part.up.nbytes for part in branch.parts) for branch in branches)
    specs = unit_specs(ours.transformer.config)
    assert low_rank.branch_bytes(specs, loras, torch.float32) > held
    monkeypatch.setattr(low_rank, "_ROWS", 0)
    assert low_rank.branch_bytes(specs, loras, torch.float32) == held
    assert low_rank.branch_bytes(specs, loras, torch.bfloat16) == held // 2
    assert low_rank.branch_bytes(specs, [], torch.float32) == 0


def make(precision: str, loras: ActiveLoras = ()) -> PackedTransformer:
    """The tiny model in ``precision``, with ``loras`` merged into the weights before they are stored."""
    model = tiny_model()
    config = TransformerConfig.from_dict(model.config, source="test")
    weight_format = make_format(precision, torch.float32)
    transformer = PackedTransformer(config, weight_format.dtype, CPU, weight_format=weight_format)
    for name, destination in transformer.destinations.items():
        destination.write(merge(name, model.state_dict()[name], loras))
    return transformer


@pytest.mark.parametrize("precision", ["int8", "int8-weight", "fp8", "nf4"])
@pytest.mark.parametrize("strength", [0.25, 1.0])
def test_narrow_weights_with_lora_are_nearer_to_fp32_than_merged_ones(
    tmp_path: Path, precision: str, strength: float
) -> None:
    """The side branch is not rounded to 8 or 4 bits."""
    lora = [(read(tmp_path, all_layers()[0]), strength)]
    exact = make("fp32")
    expected = one_step(exact.with_loras(lora))
    error = relative_error(one_step(make(precision).with_loras(lora)), expected)
    merged_error = relative_error(one_step(make(precision, loras=lora)), expected)
    assert error <= merged_error
    assert error < relative_error(one_step(exact), expected) / 4, "the LoRA is seen through the error"


@pytest.mark.parametrize(
    ("layer", "step"),
    [
        (Int8Linear(torch.empty(0, 96), torch.empty(1, 0), torch.empty(0)), 1 / 127),
        (Int8Linear(torch.empty(0, 96), torch.empty(2, 0), torch.empty(0), split=32), 1 / 127),
        (Fp8Linear(torch.empty(0, 96), torch.empty(1, 0), torch.empty(0)), 1 / 14),
    ],
    ids=["int8", "int8-two-ranges", "fp8"],
)
def test_what_the_branch_multiplies_is_what_the_narrow_activation_stands_for(layer: Any, step: float) -> None:
    x = torch.randn(1, 9, 96)
    x[..., :32] *= 100
    dense = layer.dense(layer.input(x)[:, 2:7])
    for part in (slice(0, 32), slice(32, 96)) if layer.scale.shape[0] == 2 else (slice(0, 96),):
        largest = x[:, 2:7, part].abs().amax(dim=2, keepdim=True)
        assert ((dense - x[:, 2:7])[..., part].abs() <= 0.51 * step * largest).all()


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01)])
def test_half_precision_with_lora_is_near_fp32(tmp_path: Path, precision: str, tolerance: float) -> None:
    lora = [(read(tmp_path, all_layers()[0]), 0.5)]
    expected = one_step(make("fp32").with_loras(lora))
    assert relative_error(one_step(make(precision).with_loras(lora)).float(), expected) <= tolerance


def test_the_head_in_fp32_has_its_lora_too(tmp_path: Path) -> None:
    """In bf16 the output projection runs on an fp32 copy, which the model without LoRA made first."""
    model = tiny_model()
    config = TransformerConfig.from_dict(model.config, source="test")
    plain = PackedTransformer(config, torch.bfloat16, CPU, has_fp32_head=True)
    for name, destination in plain.destinations.items():
        destination.write(model.state_dict()[name])
    lora = read(tmp_path, random_lora({"proj_out": SHAPES["proj_out"]}, alpha=9.0))
    before = one_step(plain)
    adapted = one_step(plain.with_loras([(lora, 1.0)]))
    factors = lora.factors["proj_out"]
    weight = plain.destinations["proj_out.weight"].tensor  # type: ignore[attr-defined]  # kept as it is
    weight += factors.change(1.0, slice(None)).to(torch.bfloat16)
    assert relative_error(before, one_step(plain)) > 0.1
    assert relative_error(adapted, one_step(plain)) <= 0.02


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-weight"])
def test_streamed_weights_with_lora_are_the_resident_ones(tmp_path: Path, precision: str) -> None:
    lora = [(read(tmp_path, all_layers()[0]), 0.8)]
    resident = make(precision)
    model, weight_format = tiny_model(), resident.weight_format
    blobs = blobs_of(layouts_of(resident.config, weight_format), model.state_dict())
    copies = PoisonedCopies(CallerStream(), ThreadStream("test-copies"), BlobWeights(blobs), CPU)
    streamer = Streamer(layouts_of(resident.config, weight_format), copies, ring=2, residents=(1,))
    streamed = PackedTransformer(
        resident.config, weight_format.dtype, CPU, weight_format=weight_format, units=streamer
    )
    for name, destination in streamed.destinations.items():
        destination.write(model.state_dict()[name])
    assert streamed.layer_shapes == resident.layer_shapes == SHAPES
    try:
        actual = one_step(streamed.with_loras(lora), num_passes=2)
    finally:
        streamer.close()
    assert torch.equal(actual, one_step(resident.with_loras(lora), num_passes=2))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_unit_store_with_lora_is_the_resident_model(tmp_path: Path, precision: str) -> None:
    """What only a job's start needs stays on disk until it computes; the LoRA is added there too."""
    resident = make(precision)
    tiny_model().save_pretrained(tmp_path / "model")
    store = convert(open_transformer(tmp_path / "model"), resident.weight_format, tmp_path / "store")
    units = open_units(store, CPU, tier="disk", ring=2)
    stored = stored_transformer(store, CPU, units)
    assert stored.layer_shapes == SHAPES
    lora = [(read(tmp_path, all_layers()[0]), 0.8)]
    try:
        actual = one_step(stored.with_loras(lora))
    finally:
        units.close()  # type: ignore[attr-defined]  # a streamer
    assert torch.equal(actual, one_step(resident.with_loras(lora)))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_blocks_of_rows_and_token_chunks_change_rounding_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    base = make(precision)
    lora = [(read(tmp_path, all_layers()[0]), 0.8)]
    whole = one_step(base.with_loras(lora))
    monkeypatch.setattr(low_rank, "_ROWS", 7)
    assert relative_error(one_step(base.with_loras(lora)), whole) <= (
        1e-2 if precision == "int8" else TOLERANCE
    )
    adapted = base.with_loras(lora)
    assert relative_error(one_step(adapted, adapted.context(token_chunk=11)), whole) <= (
        1e-2 if precision == "int8" else TOLERANCE
    )


def test_merged_weights_equal_the_side_branch(ours: FramepackTransformer, tmp_path: Path) -> None:
    first, second = read(tmp_path, all_layers()[0]), read(tmp_path, random_tencent_lora(SHAPES))
    loras = [(first, 0.6), (second, -0.3)]
    model = tiny_model()
    state = {name: merge(name, weight, loras) for name, weight in model.state_dict().items()}
    model.load_state_dict(state)
    with torch.no_grad():
        expected = model(**INPUTS).sample
    assert relative_error(velocity(ours, loras), expected) <= TOLERANCE


def test_merging_leaves_what_no_lora_touches_as_it_is(tmp_path: Path) -> None:
    layer = "single_transformer_blocks.0.proj_out"
    lora = read(tmp_path, random_lora({layer: SHAPES[layer]}))
    weight = torch.randn(SHAPES[layer], dtype=torch.bfloat16)
    before = weight.clone()
    merged = merge(f"{layer}.weight", weight, [(lora, 1.0)], torch.float32)
    assert not torch.equal(merged, before.float())
    assert torch.equal(merge(f"{layer}.weight", weight, [(lora, 1.0)]), merged.to(torch.bfloat16))
    assert torch.equal(weight, before)
    for name in (f"{layer}.bias", "proj_out.weight"):
        assert merge(name, weight, [(lora, 1.0)]) is weight


def test_factors_in_16_and_8_bits_are_read(ours: FramepackTransformer, tmp_path: Path) -> None:
    state = in_kohya_names(all_layers()[0])
    for dtype, tolerance in ((torch.bfloat16, 0.05), (torch.float16, 0.01), (torch.float8_e4m3fn, 0.5)):
        narrow = {
            name: tensor if name.endswith("alpha") else tensor.to(dtype) for name, tensor in state.items()
        }
        lora = read_lora(saved(tmp_path / "narrow.safetensors", narrow), SHAPES)
        assert relative_error(velocity(ours, [(lora, 1.0)]), all_layers()[1]) <= tolerance, dtype


def test_an_alpha_may_be_a_whole_number(ours: FramepackTransformer, tmp_path: Path) -> None:
    state = in_kohya_names(random_lora(SHAPES, alpha=3.0))
    expected = read_lora(saved(tmp_path / "float.safetensors", state), SHAPES)
    whole = {
        name: tensor.to(torch.int64) if name.endswith("alpha") else tensor for name, tensor in state.items()
    }
    lora = read_lora(saved(tmp_path / "whole.safetensors", whole), SHAPES)
    assert {name: f.scale for name, f in lora.factors.items()} == {
        name: f.scale for name, f in expected.factors.items()
    }
