"""Random LoRAs for a tiny model, and the same LoRA in the names of every trainer.

Expected values come from diffusers' class with PEFT: it is given the layers in its own names, split here by hand.
"""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import HunyuanVideoFramepackTransformer3DModel
from safetensors.torch import save_file
from torch import Tensor

from isoframe.engine.checkpoints import lora
from isoframe.engine.checkpoints.lora import Lora
from isoframe.engine.families.framepack.family import FramePack

# (down [r, in], up [out, r], alpha)
Layer = tuple[Tensor, Tensor, float]

# Tencent's name -> the layers of one that it stacks, for a model with two blocks of each kind.
_REFINER, _DUAL, _SINGLE = (
    "context_embedder.token_refiner.refiner_blocks",
    "transformer_blocks",
    "single_transformer_blocks",
)
_TOP = {
    "img_in.proj": "x_embedder.proj",
    "txt_in.input_embedder": "context_embedder.proj_in",
    "txt_in.t_embedder.mlp.0": "context_embedder.time_text_embed.timestep_embedder.linear_1",
    "txt_in.t_embedder.mlp.2": "context_embedder.time_text_embed.timestep_embedder.linear_2",
    "txt_in.c_embedder.linear_1": "context_embedder.time_text_embed.text_embedder.linear_1",
    "txt_in.c_embedder.linear_2": "context_embedder.time_text_embed.text_embedder.linear_2",
    "time_in.mlp.0": "time_text_embed.timestep_embedder.linear_1",
    "time_in.mlp.2": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.mlp.0": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.mlp.2": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
TENCENT: dict[str, list[str]] = {theirs: [ours] for theirs, ours in _TOP.items()}
for _block in "01":
    _theirs, _ours = f"txt_in.individual_token_refiner.blocks.{_block}", f"{_REFINER}.{_block}"
    TENCENT[f"{_theirs}.self_attn_qkv"] = [f"{_ours}.attn.to_{part}" for part in "qkv"]
    TENCENT[f"{_theirs}.self_attn_proj"] = [f"{_ours}.attn.to_out.0"]
    TENCENT[f"{_theirs}.mlp.fc1"] = [f"{_ours}.ff.net.0.proj"]
    TENCENT[f"{_theirs}.mlp.fc2"] = [f"{_ours}.ff.net.2"]
    TENCENT[f"{_theirs}.adaLN_modulation.1"] = [f"{_ours}.norm_out.linear"]
    _theirs, _ours = f"double_blocks.{_block}", f"{_DUAL}.{_block}"
    TENCENT[f"{_theirs}.img_mod.linear"] = [f"{_ours}.norm1.linear"]
    TENCENT[f"{_theirs}.img_attn_qkv"] = [f"{_ours}.attn.to_{part}" for part in "qkv"]
    TENCENT[f"{_theirs}.img_attn_proj"] = [f"{_ours}.attn.to_out.0"]
    TENCENT[f"{_theirs}.img_mlp.fc1"] = [f"{_ours}.ff.net.0.proj"]
    TENCENT[f"{_theirs}.img_mlp.fc2"] = [f"{_ours}.ff.net.2"]
    TENCENT[f"{_theirs}.txt_mod.linear"] = [f"{_ours}.norm1_context.linear"]
    TENCENT[f"{_theirs}.txt_attn_qkv"] = [f"{_ours}.attn.add_{part}_proj" for part in "qkv"]
    TENCENT[f"{_theirs}.txt_attn_proj"] = [f"{_ours}.attn.to_add_out"]
    TENCENT[f"{_theirs}.txt_mlp.fc1"] = [f"{_ours}.ff_context.net.0.proj"]
    TENCENT[f"{_theirs}.txt_mlp.fc2"] = [f"{_ours}.ff_context.net.2"]
    _theirs, _ours = f"single_blocks.{_block}", f"{_SINGLE}.{_block}"
    TENCENT[f"{_theirs}.linear1"] = [*(f"{_ours}.attn.to_{part}" for part in "qkv"), f"{_ours}.proj_mlp"]
    TENCENT[f"{_theirs}.linear2"] = [f"{_ours}.proj_out"]
    TENCENT[f"{_theirs}.modulation.linear"] = [f"{_ours}.norm.linear"]


def read_lora(path: Path | str, shapes: Mapping[str, tuple[int, ...]]) -> Lora:
    """As the engine reads it, with all names that trainers give to FramePack's layers."""
    return lora.read_lora(path, shapes, FramePack.lora_aliases())


def layer_shapes(model: HunyuanVideoFramepackTransformer3DModel) -> dict[str, tuple[int, ...]]:
    """Every layer with a matrix or a kernel."""
    return {
        name.removesuffix(".weight"): tuple(weight.shape)
        for name, weight in model.state_dict().items()
        if weight.dim() > 1
    }


def random_lora(
    shapes: Mapping[str, tuple[int, ...]], *, rank: int = 3, alpha: float = 3.0, seed: int = 1
) -> dict[str, Layer]:
    """Factors whose product is of about the size of the weights of :func:`tiny_models.draw_weights`."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        name: (
            draw(rank, *shape[1:]) / math.prod(shape[1:]) ** 0.5,
            draw(shape[0], rank, *[1] * (len(shape) - 2)) / (2 * rank**0.5),
            alpha,
        )
        for name, shape in shapes.items()
    }


def random_tencent_lora(
    shapes: Mapping[str, tuple[int, ...]], *, rank: int = 3, alpha: float = 3.0, seed: int = 1
) -> dict[str, Layer]:
    """A LoRA in Tencent's names, whose fused layers have one ``down``."""
    stacked = {
        theirs: (sum(shapes[name][0] for name in ours), *shapes[ours[0]][1:])
        for theirs, ours in TENCENT.items()
    }
    return random_lora(stacked, rank=rank, alpha=alpha, seed=seed)


def split_tencent(lora: Mapping[str, Layer], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Layer]:
    """The same change in the checkpoint's names."""
    layers: dict[str, Layer] = {}
    for theirs, (down, up, alpha) in lora.items():
        if theirs == "final_layer.adaLN_modulation.1":
            # Tencent: shift, scale; here: scale, shift.
            half = up.shape[0] // 2
            up = torch.cat([up[half:], up[:half]])
        ends = [0, *itertools.accumulate(shapes[name][0] for name in TENCENT[theirs])]
        for name, (start, end) in zip(TENCENT[theirs], itertools.pairwise(ends), strict=True):
            layers[name] = (down, up[start:end], alpha)
    return layers


def in_peft_names(
    lora: Mapping[str, Layer], prefix: str = "transformer.", *, is_folded: bool = False
) -> dict[str, Tensor]:
    """lora_A and lora_B; ``is_folded`` multiplies alpha / r into lora_B, as for a reader that knows no alpha."""
    state = {}
    for name, (down, up, alpha) in lora.items():
        state[f"{prefix}{name}.lora_A.weight"] = down
        state[f"{prefix}{name}.lora_B.weight"] = up * (alpha / down.shape[0] if is_folded else 1)
    return {name: tensor.clone() for name, tensor in state.items()}


def in_kohya_names(lora: Mapping[str, Layer]) -> dict[str, Tensor]:
    state = {}
    for name, (down, up, alpha) in lora.items():
        flat = f"lora_unet_{name.replace('.', '_')}"
        state |= {
            f"{flat}.lora_down.weight": down,
            f"{flat}.lora_up.weight": up,
            f"{flat}.alpha": torch.tensor(alpha),
        }
    return {name: tensor.clone() for name, tensor in state.items()}


def in_dotted_kohya_names(lora: Mapping[str, Layer], prefix: str = "diffusion_model.") -> dict[str, Tensor]:
    state = {}
    for name, (down, up, alpha) in lora.items():
        state |= {f"{prefix}{name}.lora_down.weight": down, f"{prefix}{name}.lora_up.weight": up}
        state[f"{prefix}{name}.alpha"] = torch.tensor(alpha)
    return {name: tensor.clone() for name, tensor in state.items()}


def saved(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file(dict(state), path, metadata=metadata)
    return path
