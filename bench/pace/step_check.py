"""The gate before a step is timed: a small model's step beside that of diffusers' class, in the format and attention
that will be timed."""

import dataclasses
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ...engine.families.framepack.transformer import PackedTransformer
from ...engine.model.attention_backends import AttentionShape
from ...engine.model.attention_choice import make_self_attention
from ...quant import make_format
from ..meters.accuracy import relative_rms
from ..records.environment import installed_version
from ..records.rows import Gate
from ..subjects.random_model import allocate_transformer, draw_weight, fill_randomly
from ..subjects.single_step import (
    MODEL_13B,
    StepShape,
    diffusers_model,
    diffusers_step,
    draw_inputs,
    isoframe_step,
)

_CPU = torch.device("cpu")
# The 13B model's heads, two blocks of each kind, narrow enough for a moment on the CPU.
GATE_MODEL = dataclasses.replace(
    MODEL_13B,
    num_attention_heads=3,
    num_layers=2,
    num_single_layers=2,
    num_refiner_layers=1,
    text_embed_dim=96,
    pooled_projection_dim=64,
    image_proj_dim=64,
)
GATE_SHAPE = StepShape(size=(10, 12), num_text_tokens=9, num_image_tokens=16)
# Largest accepted relative RMS difference of the velocity to fp32: three times and more of what is measured on the CPU,
# for a GPU adds in another order.
MAX_ERRORS = {
    "fp32": 1e-4, "bf16": 0.03, "fp16": 0.003, "int8": 0.05, "int8-weight": 0.03, "fp8": 0.08, "nf4": 0.25,
}  # fmt: skip


def check_step(device: torch.device, *, precision: str, attention: str = "auto") -> Gate:
    """Compare a step on ``device`` with the reference in fp32 on the CPU; both have the same random weights."""
    reference, expected = _reference()
    try:
        actual, name = _step(device, precision, attention)
    # Of a kernel that does not start or run; a missing library is an error of its own.
    except RuntimeError as error:
        return Gate(
            is_green=False, text=f"a step in {precision} failed: {str(error).strip().splitlines()[0]}"
        )
    error_ratio, limit = relative_rms(actual.float().cpu(), expected), MAX_ERRORS[precision]
    # NaN is no error below a limit.
    is_green = error_ratio <= limit
    return Gate(
        is_green=is_green,
        text=f"a step of a small model in {precision} with attention {name}: relative RMS to {reference} "
        f"{error_ratio:.2e} {'<=' if is_green else '>'} {limit:.0e}",
    )


def _reference() -> tuple[str, Tensor]:
    """What computed the reference, and its velocity."""
    inputs = draw_inputs(GATE_MODEL, GATE_SHAPE, torch.float32, _CPU)
    with torch.inference_mode():
        if installed_version("diffusers") is None:
            return "our references", isoframe_step(
                fill_randomly(PackedTransformer(GATE_MODEL, torch.float32, _CPU)), inputs
            )[0]()
        model = diffusers_model(GATE_MODEL, torch.float32, _CPU)
        for name, weight in model.state_dict().items():
            weight.copy_(draw_weight(name, tuple(weight.shape), _CPU))
        return "diffusers", diffusers_step(model, inputs)()


def _step(device: torch.device, precision: str, attention: str) -> tuple[Tensor, str]:
    """Our velocity on ``device``, and the attention that it took."""
    weight_format = make_format(precision, torch.float32 if device.type == "cpu" else torch.bfloat16)
    transformer = allocate_transformer(GATE_MODEL, weight_format, device)
    shape = AttentionShape(
        num_tokens=GATE_SHAPE.num_tokens,
        num_heads=GATE_MODEL.num_attention_heads,
        head_dim=GATE_MODEL.attention_head_dim,
        dtype=transformer.dtype,
    )
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        fill_randomly(transformer, _CPU)
        transformer.self_attention = make_self_attention(
            attention, precision=precision, device=device, cache_dir=Path(folder), shape=shape
        )
        inputs = draw_inputs(GATE_MODEL, GATE_SHAPE, transformer.dtype, device)
        return isoframe_step(transformer, inputs)[0](), transformer.self_attention.name
