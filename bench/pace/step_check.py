"""The gate before a step is timed: a small model's step beside that of diffusers' class, in the format and attention
that will be timed."""

import dataclasses

import torch
from torch import Tensor

from ...engine.errors import IsoframeError
from ...quant import make_format
from ..meters.accuracy import relative_rms
from ..meters.fresh_process import first_line
from ..records.environment import installed_version
from ..records.rows import Gate
from ..subjects.single_step import (
    MODEL_13B,
    StepShape,
    diffusers_step,
    draw_inputs,
    random_diffusers_model,
    random_step,
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
    # Of a kernel that does not compile, start or run; what is missing or refused is an error of its own.
    except Exception as error:
        if isinstance(error, ImportError | IsoframeError):
            raise
        return Gate(is_green=False, text=f"a step in {precision} failed: {first_line(error)}")
    error_ratio, limit = relative_rms(actual.float().cpu(), expected), MAX_ERRORS[precision]
    # NaN is no error below a limit.
    is_green = error_ratio <= limit
    return Gate(
        is_green=is_green,
        text=f"a step of a small model in {precision} with attention {name}: relative RMS to {reference} "
        f"{error_ratio:.2e} {'<=' if is_green else '>'} {limit:.0e}",
    )


def _reference() -> tuple[str, Tensor]:
    """Name of the reference implementation, and the velocity that it computes in fp32 on the CPU."""
    with torch.inference_mode():
        if installed_version("diffusers") is None:
            step, _ = random_step(GATE_MODEL, GATE_SHAPE, make_format("fp32", torch.float32), _CPU)
            return "our references", step()
        inputs = draw_inputs(GATE_MODEL, GATE_SHAPE, torch.float32, _CPU)
        return "diffusers", diffusers_step(random_diffusers_model(GATE_MODEL, torch.float32, _CPU), inputs)()


def _step(device: torch.device, precision: str, attention: str) -> tuple[Tensor, str]:
    """Our velocity on ``device``, and the attention that it took."""
    weight_format = make_format(precision, torch.float32 if device.type == "cpu" else torch.bfloat16)
    with torch.inference_mode():
        step, name = random_step(
            GATE_MODEL, GATE_SHAPE, weight_format, device, attention=attention, source=_CPU
        )
        return step(), name
