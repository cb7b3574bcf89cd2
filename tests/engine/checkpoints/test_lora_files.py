"""What a LoRA file may not be: incomplete, not finite, or of another model. Each has its own message."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lora_cases import in_kohya_names, in_peft_names, layer_shapes, random_lora, read_lora, saved
from safetensors.torch import save
from tiny_models import tiny_model
from torch import Tensor

from isoframe.engine.checkpoints.lora_names import LoraNames
from isoframe.engine.errors import CheckpointError
from isoframe.engine.families.framepack.family import FramePack

SHAPES = layer_shapes(tiny_model())
LAYER = "single_transformer_blocks.1.proj_out"
OTHER = "transformer_blocks.0.attn.to_q"
DOWN, UP = f"transformer.{LAYER}.lora_A.weight", f"transformer.{LAYER}.lora_B.weight"


def state() -> dict[str, Tensor]:
    return in_peft_names(random_lora({name: SHAPES[name] for name in (LAYER, OTHER)}, rank=2))


_GOOD = save(state())
_IN, _OUT = SHAPES[LAYER][1], SHAPES[LAYER][0]


@pytest.mark.parametrize("name", ["style.pt", "style.ckpt", "style", "style.gguf"])
def test_another_suffix_is_refused_even_with_sound_content(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(_GOOD)
    with pytest.raises(CheckpointError, match=r"must be a \.safetensors file"):
        read_lora(tmp_path / name, SHAPES)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.safetensors cannot be read"):
        read_lora(tmp_path / "none.safetensors", SHAPES)


def test_a_folder_must_hold_one_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"must have one \.safetensors file, got 0"):
        read_lora(tmp_path, SHAPES)
    saved(tmp_path / "a.safetensors", state())
    assert set(read_lora(tmp_path, SHAPES).factors) == {LAYER, OTHER}
    saved(tmp_path / "b.safetensors", state())
    with pytest.raises(CheckpointError, match="got 2; name the LoRA's file"):
        read_lora(tmp_path, SHAPES)


Change = Callable[[dict[str, Tensor]], object]
MISFITS: dict[str, tuple[Change, str]] = {
    "nan-down": (
        lambda s: s[DOWN].view(-1)[7].fill_(torch.nan),
        rf"1 factors with NaN or infinity: {LAYER} \(down\)",
    ),
    "inf-up": (
        lambda s: s[UP].view(-1)[0].fill_(torch.inf),
        rf"1 factors with NaN or infinity: {LAYER} \(up\)",
    ),
    "nan-alpha": (
        lambda s: s.update({f"transformer.{LAYER}.alpha": torch.tensor(torch.nan)}),
        rf"{LAYER}.alpha must be a finite number, got nan",
    ),
    "two-alphas": (
        lambda s: s.update({f"transformer.{LAYER}.alpha": torch.ones(2)}),
        r"alpha must be one number, got shape \[2\]",
    ),
    "no-up": (lambda s: s.pop(UP), rf"1 incomplete: transformer.{LAYER} has no up factor"),
    "no-down": (lambda s: s.pop(DOWN), rf"1 incomplete: transformer.{LAYER} has no down factor"),
    "alpha-alone": (
        lambda s: s.update({"transformer.proj_out.alpha": torch.ones(())}),
        "1 incomplete: transformer.proj_out has no down factor",
    ),
    "two-ranks": (
        lambda s: s.update({UP: torch.ones(_OUT, 3)}),
        rf"1 of two ranks: transformer.{LAYER} \(down 2, up 3\)",
    ),
    "rank-0": (
        lambda s: s.update({UP: torch.ones(_OUT, 0), DOWN: torch.ones(0, _IN)}),
        r"1 of two ranks: .* \(down 0, up 0\)",
    ),
    "other-width": (
        lambda s: s.update({DOWN: torch.ones(2, _IN + 1)}),
        rf"1 misshapen: .*\[2, {_IN + 1}\] and \[{_OUT}, 2\] instead of \[r, {_IN}\] and \[{_OUT}, r\]",
    ),
    "other-height": (lambda s: s.update({UP: torch.ones(_OUT - 1, 2)}), "1 misshapen"),
    "factors-of-one-axis": (lambda s: s.update({DOWN: torch.ones(_IN)}), "1 misshapen"),
    "unknown-layer": (
        lambda s: s.update({"transformer.blocks.0.ffn.0.lora_A.weight": torch.ones(2, 4)}),
        "1 unknown: transformer.blocks.0.ffn.0",
    ),
    "block-past-the-last": (
        lambda s: s.update(in_peft_names(random_lora({"transformer_blocks.2.attn.to_q": (128, 128)}))),
        "1 unknown: transformer.transformer_blocks.2.attn.to_q",
    ),
    "text-encoder": (
        lambda s: s.update(
            {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 4)}
        ),
        "1 unknown: lora_te_text_model_encoder_layers_0_mlp_fc1",
    ),
    "dora": (
        lambda s: s.update({f"transformer.{LAYER}.dora_scale": torch.ones(4)}),
        "1 unknown: .*dora_scale",
    ),
    "lokr": (lambda s: s.update({f"transformer.{LAYER}.lokr_w1": torch.ones(4)}), "1 unknown: .*lokr_w1"),
    "bias": (lambda s: s.update({UP.replace("weight", "bias"): torch.ones(4)}), "1 unknown: .*lora_B.bias"),
    "given-in-two-names": (
        lambda s: s.update(in_kohya_names(random_lora({LAYER: SHAPES[LAYER]}))),
        f"1 given twice: {LAYER} by .* and .*",
    ),
    "one-of-a-fused-layer-twice": (
        lambda s: s.update(in_peft_names(random_lora({"double_blocks.0.img_attn_qkv": (384, 128)}))),
        f"1 given twice: {OTHER} by",
    ),
    "two-adapters": (
        lambda s: s.update({DOWN.replace("weight", "b.weight"): s[DOWN].clone()}),
        "1 unknown: .*a second lora_A",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_misfit_is_named(tmp_path: Path, case: str) -> None:
    change, message = MISFITS[case]
    tensors = state()
    change(tensors)
    path = saved(tmp_path / "misfit.safetensors", tensors)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_lora(path, SHAPES)
    assert "misfit.safetensors" in str(caught.value)


def test_all_that_is_wrong_is_counted_and_the_first_ten_are_named(tmp_path: Path) -> None:
    tensors = state() | {f"transformer.nowhere.{i:02}.lora_A.weight": torch.ones(1, 1) for i in range(30)}
    tensors[UP] = torch.ones(_OUT, 3)
    with pytest.raises(CheckpointError) as caught:
        read_lora(saved(tmp_path / "x.safetensors", tensors), SHAPES)
    message = str(caught.value)
    assert "30 unknown: transformer.nowhere.00, " in message
    assert "transformer.nowhere.09, ...; 1 of two ranks" in message
    assert "nowhere.10" not in message


CONFIGS: dict[str, tuple[str, str]] = {
    "no-json": ("{", "unreadable LoRA configuration"),
    "nested-deeply": ("[" * 100_000, "unreadable LoRA configuration"),
    "a-list": ("[]", "is no object: list"),
    "no-alpha": ('{"transformer.r": 4}', "must have lora_alpha, got r"),
    "nan-alpha": ('{"transformer.lora_alpha": NaN}', "NaN is no finite number"),
    "text-alpha": ('{"transformer.lora_alpha": "8"}', "lora_alpha must be a finite number, got '8'"),
    "dora": (
        '{"transformer.lora_alpha": 8, "transformer.use_dora": true}',
        "use_dora, which is not supported",
    ),
    "pattern-is-a-list": (
        '{"lora_alpha": 8, "alpha_pattern": [1]}',
        "alpha_pattern must map layers to numbers",
    ),
    "pattern-is-an-expression": ('{"lora_alpha": 8, "alpha_pattern": {"(a+)+b": 2}}', "got the expression"),
    "pattern-of-infinity": (
        '{"lora_alpha": 8, "alpha_pattern": {"proj_out": Infinity}}',
        "Infinity is no finite number",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("place", ["metadata", "beside"])
def test_a_configuration_that_cannot_be_followed_is_refused(tmp_path: Path, case: str, place: str) -> None:
    config, message = CONFIGS[case]
    if place == "metadata":
        path = saved(tmp_path / "style.safetensors", state(), metadata={"lora_adapter_metadata": config})
    else:
        path = saved(tmp_path / "adapter_model.safetensors", state())
        (tmp_path / "adapter_config.json").write_text(config.replace("transformer.", ""))
    with pytest.raises(CheckpointError, match=message):
        read_lora(path, SHAPES)


def test_any_damaged_byte_of_a_header_is_refused_or_harmless(tmp_path: Path) -> None:
    """Whatever the header says, reading ends with a LoRA of this model or with the one error."""
    header_end = 8 + int.from_bytes(_GOOD[:8], "little")
    rng, path, num_refused = random.Random(3), tmp_path / "fuzzed.safetensors", 0
    for _ in range(400):
        content = bytearray(_GOOD)
        for _ in range(rng.choice((1, 1, 2, 8))):
            content[rng.randrange(header_end)] = rng.randrange(256)
        path.write_bytes(content)
        try:
            lora = read_lora(path, SHAPES)
        except CheckpointError:
            num_refused += 1
            continue
        for name, factors in lora.factors.items():
            assert (factors.up @ factors.down).shape == torch.Size((SHAPES[name][0], SHAPES[name][1]))
    assert num_refused > 300


def test_factors_outlive_their_file(tmp_path: Path) -> None:
    """A trainer may write a file again while a job uses it."""
    path = saved(tmp_path / "style.safetensors", state())
    lora = read_lora(path, SHAPES)
    before = lora.factors[LAYER].down.clone()
    path.write_bytes(b"")
    assert torch.equal(lora.factors[LAYER].down, before)


@pytest.mark.parametrize(
    ("comfy", "tencent"),
    [
        ("double_blocks.1.img_attn.qkv", "double_blocks.1.img_attn_qkv"),
        ("double_blocks.0.txt_attn.proj", "double_blocks.0.txt_attn_proj"),
        ("double_blocks.0.img_mlp.0", "double_blocks.0.img_mlp.fc1"),
        ("double_blocks.0.txt_mlp.2", "double_blocks.0.txt_mlp.fc2"),
        ("double_blocks.0.txt_mod.lin", "double_blocks.0.txt_mod.linear"),
        ("single_blocks.1.modulation.lin", "single_blocks.1.modulation.linear"),
        (
            "txt_in.individual_token_refiner.blocks.0.self_attn.qkv",
            "txt_in.individual_token_refiner.blocks.0.self_attn_qkv",
        ),
        (
            "txt_in.individual_token_refiner.blocks.1.mlp.2",
            "txt_in.individual_token_refiner.blocks.1.mlp.fc2",
        ),
        ("txt_in.t_embedder.out_layer", "txt_in.t_embedder.mlp.2"),
        ("txt_in.c_embedder.in_layer", "txt_in.c_embedder.linear_1"),
        ("time_in.in_layer", "time_in.mlp.0"),
        ("guidance_in.out_layer", "guidance_in.mlp.2"),
        ("vector_in.in_layer", "vector_in.in_layer"),
        ("final_layer.adaLN_modulation.1", "final_layer.adaLN_modulation.1"),
    ],
)
def test_comfyui_names_are_tencents_names(comfy: str, tencent: str) -> None:
    names = LoraNames(SHAPES, FramePack.lora_aliases())
    assert names.find(tencent) is not None
    assert names.find(f"diffusion_model.{comfy}") == names.find(tencent)


def test_no_two_layers_share_a_kohya_name() -> None:
    """Underscores for dots could make two names one."""
    names = LoraNames(SHAPES, FramePack.lora_aliases())
    for name, target in names._targets.items():
        assert names._kohya[name.replace(".", "_")] == target, name
    for name in SHAPES:
        for written in (
            name,
            f"transformer.{name}",
            f"diffusion_model.{name}",
            f"lora_unet_{name.replace('.', '_')}",
        ):
            target = names.find(written)
            assert target is not None, written
            assert target.layers == (name,), written
