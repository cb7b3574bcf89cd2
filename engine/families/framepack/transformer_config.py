"""Sizes of the packed transformer: from its ``config.json``, or from the shapes of its tensors."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ...errors import CheckpointError, first_names

TRANSFORMER_CLASSES = ("HunyuanVideoTransformer3DModelPacked", "HunyuanVideoFramepackTransformer3DModel")

_ROPE_AXES = {128: (16, 56, 56), 64: (16, 24, 24)}
_LAYER_COUNTS = ("num_layers", "num_single_layers", "num_refiner_layers")
# More than any model has: a damaged number would have all memory taken before a missing tensor is noticed.
_MAX_LAYERS, _MAX_SIZE = 1000, 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerConfig:
    """Sizes of the packed transformer; the keys of its ``config.json``.

    Attributes:
        in_channels: latent channels going in.
        out_channels: latent channels coming out.
        num_attention_heads: heads of every attention.
        attention_head_dim: channels of a head.
        num_layers: double-stream blocks.
        num_single_layers: single-stream blocks.
        num_refiner_layers: blocks of the text refiner.
        mlp_ratio: hidden width of the MLPs over ``inner_dim``.
        patch_size: latent pixels of a token along y and x.
        patch_size_t: latent frames of a token.
        qk_norm: "rms_norm".
        guidance_embeds: whether the distilled guidance is embedded.
        text_embed_dim: width of the LLaMA embeddings.
        pooled_projection_dim: width of the pooled CLIP embedding.
        rope_theta: base of the rotary frequencies.
        rope_axes_dim: channels rotated by (t, y, x); they add up to ``attention_head_dim``.
        has_image_proj: whether image tokens are projected into the text stream.
        image_proj_dim: width of the SigLIP tokens.
        has_clean_x_embedder: whether the history has its own patch embeddings.
    """

    in_channels: int
    out_channels: int
    num_attention_heads: int
    attention_head_dim: int
    num_layers: int
    num_single_layers: int
    num_refiner_layers: int
    mlp_ratio: float
    patch_size: int
    patch_size_t: int
    qk_norm: str
    guidance_embeds: bool
    text_embed_dim: int
    pooled_projection_dim: int
    rope_theta: float
    rope_axes_dim: tuple[int, int, int]
    has_image_proj: bool
    image_proj_dim: int
    has_clean_x_embedder: bool

    @property
    def inner_dim(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def mlp_dim(self) -> int:
        """Hidden width of the blocks' MLPs."""
        return int(self.inner_dim * self.mlp_ratio)

    @classmethod
    def from_dict(cls, raw: Mapping[str, object], *, source: str) -> "TransformerConfig":
        """The config in ``raw``; ``source`` names it in errors.

        Raises:
            CheckpointError: another model's config, or keys that are unknown, missing or out of range.
        """
        class_name = raw.get("_class_name", TRANSFORMER_CLASSES[0])
        if class_name not in TRANSFORMER_CLASSES:
            raise CheckpointError(
                f"{source}: _class_name must be {' or '.join(TRANSFORMER_CLASSES)}, got {class_name!r}; "
                "give the FramePack transformer"
            )
        given = {name: value for name, value in raw.items() if not name.startswith("_")}
        if given.get("image_condition_type") is None:
            given.pop("image_condition_type", None)
        _check_keys(given, source)
        return cls(**{key.name: _convert(key.name, key.type, given, source) for key in fields(cls)})

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, ...]], *, source: str) -> "TransformerConfig":
        """The config that tensors of these ``shapes`` have, for a file without a ``config.json``.

        The rotary base and axes leave no trace in the shapes; they are the published ones for the head width.
        """
        try:
            return _derive_config(shapes)
        except KeyError as error:
            raise CheckpointError(
                f"{source} is not a FramePack transformer: it has no tensor {error.args[0]!r} "
                f"(its first: {first_names(shapes)}); give a FramePack transformer in diffusers' names"
            ) from error

    def __post_init__(self) -> None:
        if self.qk_norm != "rms_norm":
            raise CheckpointError(f"qk_norm must be 'rms_norm', got {self.qk_norm!r}")
        if sum(self.rope_axes_dim) != self.attention_head_dim:
            raise CheckpointError(
                f"rope_axes_dim must add up to attention_head_dim = {self.attention_head_dim}, "
                f"got {self.rope_axes_dim}"
            )


def _check_keys(given: Mapping[str, object], source: str) -> None:
    known = {key.name for key in fields(TransformerConfig)}
    problems = {"unknown": sorted(given.keys() - known), "missing": sorted(known - given.keys())}
    if any(problems.values()):
        found = "; ".join(f"{kind} {', '.join(names)}" for kind, names in problems.items() if names)
        raise CheckpointError(f"{source} must have the keys of a FramePack transformer: {found}")


def _convert(name: str, kind: object, given: Mapping[str, object], source: str) -> Any:
    value: Any = given[name]
    is_triple = name == "rope_axes_dim" and isinstance(value, list | tuple) and len(value) == 3
    if is_triple and all(type(size) is int and 0 < size <= _MAX_SIZE for size in value):
        return tuple(value)
    least, most = (0, _MAX_LAYERS) if name in _LAYER_COUNTS else (1, _MAX_SIZE)
    fits = {
        bool: value in (True, False),
        str: isinstance(value, str),
        int: type(value) is int and least <= value <= most,
        float: isinstance(value, int | float) and 0 < value <= _MAX_SIZE,
    }
    if isinstance(kind, type) and fits.get(kind):
        return kind(value)
    raise CheckpointError(f"{source}: {name} has the wrong type or is out of range: {value!r}")


def _derive_config(shapes: Mapping[str, tuple[int, ...]]) -> TransformerConfig:
    inner_dim, in_channels, patch_size_t, patch_size, _ = shapes["x_embedder.proj.weight"]
    block, mlp = "transformer_blocks.0", "ff.net.0.proj"
    if f"{block}.attn.norm_q.weight" not in shapes:
        block, mlp = "single_transformer_blocks.0", "proj_mlp"
    head_dim = shapes[f"{block}.attn.norm_q.weight"][0]
    if head_dim not in _ROPE_AXES:
        raise CheckpointError(
            f"heads of {head_dim} channels need a config.json beside the file: their rotary axes are not known "
            f"(known: {', '.join(map(str, _ROPE_AXES))})"
        )
    has_image_proj = "image_projection.up.weight" in shapes
    return TransformerConfig(
        in_channels=in_channels,
        out_channels=shapes["proj_out.weight"][0] // (patch_size_t * patch_size * patch_size),
        num_attention_heads=inner_dim // head_dim,
        attention_head_dim=head_dim,
        num_layers=_count_layers(shapes, "transformer_blocks"),
        num_single_layers=_count_layers(shapes, "single_transformer_blocks"),
        num_refiner_layers=_count_layers(shapes, "context_embedder.token_refiner.refiner_blocks"),
        mlp_ratio=shapes[f"{block}.{mlp}.weight"][0] / inner_dim,
        patch_size=patch_size,
        patch_size_t=patch_size_t,
        qk_norm="rms_norm",
        guidance_embeds="time_text_embed.guidance_embedder.linear_1.weight" in shapes,
        text_embed_dim=shapes["context_embedder.proj_in.weight"][1],
        pooled_projection_dim=shapes["time_text_embed.text_embedder.linear_1.weight"][1],
        rope_theta=256.0,
        rope_axes_dim=_ROPE_AXES[head_dim],
        has_image_proj=has_image_proj,
        image_proj_dim=shapes["image_projection.up.weight"][1] if has_image_proj else 1152,
        has_clean_x_embedder="clean_x_embedder.proj.weight" in shapes,
    )


def _count_layers(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return len({match[1] for name in shapes if (match := pattern.match(name))})
