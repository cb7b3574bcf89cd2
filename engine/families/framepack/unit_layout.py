"""The blocks' weights as units of about the same size, in execution order.

A dual-stream block is two units (latent stream, condition stream), a single-stream block is one.
"""

from ...model.precision import LayerSpec, UnitSpec
from .transformer_config import TransformerConfig


def unit_specs(config: TransformerConfig) -> tuple[UnitSpec, ...]:
    """All units of a transformer in execution order."""
    dual = [
        _stream(config, block, stream)
        for block in range(config.num_layers)
        for stream in ("latent", "condition")
    ]
    return (*dual, *(_single(config, block) for block in range(config.num_single_layers)))


def block_units(num_dual: int, num_single: int) -> list[tuple[int, ...]]:
    """Units of each block in execution order: two of a dual-stream block, one of the others."""
    dual = [(2 * block, 2 * block + 1) for block in range(num_dual)]
    return [*dual, *((2 * num_dual + block,) for block in range(num_single))]


def _stream(config: TransformerConfig, block: int, stream: str) -> UnitSpec:
    prefix = f"transformer_blocks.{block}"
    qkv, out, mlp = {
        "latent": (("to_q", "to_k", "to_v"), "to_out.0", "ff"),
        "condition": (("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context"),
    }[stream]
    dim, mlp_dim = config.inner_dim, config.mlp_dim
    return UnitSpec(
        f"{prefix}.{stream}",
        (
            LayerSpec("qkv", tuple(f"{prefix}.attn.{part}" for part in qkv), (dim,) * 3, dim),
            LayerSpec("out", (f"{prefix}.attn.{out}",), (dim,), dim),
            LayerSpec("mlp_in", (f"{prefix}.{mlp}.net.0.proj",), (mlp_dim,), dim),
            LayerSpec("mlp_out", (f"{prefix}.{mlp}.net.2",), (dim,), mlp_dim),
        ),
    )


def _single(config: TransformerConfig, block: int) -> UnitSpec:
    prefix = f"single_transformer_blocks.{block}"
    dim, mlp_dim = config.inner_dim, config.mlp_dim
    inputs = (*(f"{prefix}.attn.to_{part}" for part in "qkv"), f"{prefix}.proj_mlp")
    return UnitSpec(
        prefix,
        (
            LayerSpec("qkv_mlp", inputs, (dim, dim, dim, mlp_dim), dim),
            LayerSpec("out", (f"{prefix}.proj_out",), (dim,), dim + mlp_dim, split=dim),
        ),
    )
