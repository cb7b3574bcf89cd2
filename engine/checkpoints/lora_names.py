"""Names of LoRA layers: those of this checkpoint, those of Tencent's HunyuanVideo and what ComfyUI makes of them.

kohya's form of each has underscores for dots.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# Prefixes that trainers put before a layer's name; several may be nested.
_PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.", "model.")
_KOHYA_PREFIX = "lora_unet_"
_BLOCK = "{}"

# Tencent's layer -> the checkpoint's layers that are stacked in it along the output, "{}" being the block.
_TENCENT: dict[str, tuple[str, ...]] = {
    "img_in.proj": ("x_embedder.proj",),
    "txt_in.input_embedder": ("context_embedder.proj_in",),
    "txt_in.t_embedder.mlp.0": ("context_embedder.time_text_embed.timestep_embedder.linear_1",),
    "txt_in.t_embedder.mlp.2": ("context_embedder.time_text_embed.timestep_embedder.linear_2",),
    "txt_in.c_embedder.linear_1": ("context_embedder.time_text_embed.text_embedder.linear_1",),
    "txt_in.c_embedder.linear_2": ("context_embedder.time_text_embed.text_embedder.linear_2",),
    "time_in.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "time_in.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "guidance_in.mlp.0": ("time_text_embed.guidance_embedder.linear_1",),
    "guidance_in.mlp.2": ("time_text_embed.guidance_embedder.linear_2",),
    "vector_in.in_layer": ("time_text_embed.text_embedder.linear_1",),
    "vector_in.out_layer": ("time_text_embed.text_embedder.linear_2",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
_REFINER, _DUAL, _SINGLE = (
    "context_embedder.token_refiner.refiner_blocks.{}",
    "transformer_blocks.{}",
    "single_transformer_blocks.{}",
)
_TENCENT |= {
    f"txt_in.individual_token_refiner.blocks.{{}}.{theirs}": tuple(f"{_REFINER}.{part}" for part in ours)
    for theirs, ours in {
        "self_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "self_attn_proj": ("attn.to_out.0",),
        "mlp.fc1": ("ff.net.0.proj",),
        "mlp.fc2": ("ff.net.2",),
        "adaLN_modulation.1": ("norm_out.linear",),
    }.items()
}
_TENCENT |= {
    f"double_blocks.{{}}.{theirs}": tuple(f"{_DUAL}.{part}" for part in ours)
    for theirs, ours in {
        "img_mod.linear": ("norm1.linear",),
        "img_attn_qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
        "img_attn_proj": ("attn.to_out.0",),
        "img_mlp.fc1": ("ff.net.0.proj",),
        "img_mlp.fc2": ("ff.net.2",),
        "txt_mod.linear": ("norm1_context.linear",),
        "txt_attn_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
        "txt_attn_proj": ("attn.to_add_out",),
        "txt_mlp.fc1": ("ff_context.net.0.proj",),
        "txt_mlp.fc2": ("ff_context.net.2",),
    }.items()
}
_TENCENT |= {
    f"single_blocks.{{}}.{theirs}": tuple(f"{_SINGLE}.{part}" for part in ours)
    for theirs, ours in {
        "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
        "linear2": ("proj_out",),
        "modulation.linear": ("norm.linear",),
    }.items()
}
# What ComfyUI calls parts of Tencent's layers.
_COMFY = (
    (r"((time|guidance)_in|t_embedder)\.mlp\.0", r"\1.in_layer"),
    (r"((time|guidance)_in|t_embedder)\.mlp\.2", r"\1.out_layer"),
    (r"c_embedder\.linear_1", "c_embedder.in_layer"),
    (r"c_embedder\.linear_2", "c_embedder.out_layer"),
    (r"_attn_(qkv|proj)", r"_attn.\1"),
    (r"mlp\.fc1", "mlp.0"),
    (r"mlp\.fc2", "mlp.2"),
    (r"(_mod|modulation)\.linear", r"\1.lin"),
)
# Tencent's output norm is (shift, scale), the checkpoint's is (scale, shift).
_SWAPPED = ("final_layer.adaLN_modulation.1",)


@dataclass(frozen=True, slots=True)
class LoraTarget:
    """What a layer of a LoRA file changes.

    Attributes:
        layers: the checkpoint's layers, stacked along the output.
        has_swapped_halves: whether the two halves of the output change places.
    """

    layers: tuple[str, ...]
    has_swapped_halves: bool = False


class LoraNames:
    """Every name that a LoRA file may give to a layer of one model."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Names for the layers of ``shapes``, by checkpoint name without ``.weight``."""
        self._targets = {name: LoraTarget((name,)) for name in shapes}
        for theirs, ours in _TENCENT.items():
            for block in _blocks(ours[0], shapes):
                layers = tuple(name.replace(_BLOCK, block) for name in ours)
                for name in (theirs, _comfy_name(theirs)):
                    self._targets[name.replace(_BLOCK, block)] = LoraTarget(layers, theirs in _SWAPPED)
        self._kohya = {name.replace(".", "_"): target for name, target in self._targets.items()}

    def find(self, name: str) -> LoraTarget | None:
        """The layers behind ``name``, as a file writes it; None if the model has no such layer."""
        if name.startswith(_KOHYA_PREFIX):
            return self._kohya.get(name.removeprefix(_KOHYA_PREFIX))
        return self._targets.get(without_prefix(name))


def without_prefix(name: str) -> str:
    """``name`` less what a trainer put before it."""
    while (prefix := next((p for p in _PREFIXES if name.startswith(p)), None)) is not None:
        name = name.removeprefix(prefix)
    return name


def _comfy_name(name: str) -> str:
    """Tencent's ``name`` as ComfyUI writes it."""
    for pattern, replacement in _COMFY:
        name = re.sub(pattern, replacement, name)
    return name


def _blocks(template: str, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Numbers of the blocks that have the layer ``template``; one empty number for a layer outside the blocks."""
    if _BLOCK not in template:
        return [""] if template in shapes else []
    pattern = re.compile(re.escape(template).replace(re.escape(_BLOCK), r"(\d+)"))
    return [match[1] for name in shapes if (match := pattern.fullmatch(name))]
