"""One denoising step of our transformer against diffusers' class: same weights, same process, alternating."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.errors import IsoframeError
from ...engine.families.framepack.transformer import PackedTransformer
from ...engine.families.framepack.transformer_config import TransformerConfig
from ..subjects.single_step import (
    MODEL_13B,
    StepShape,
    diffusers_model,
    diffusers_step,
    draw_inputs,
    isoframe_step,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardCase:
    """What one comparison runs.

    Attributes:
        name: of the case.
        dtype: of weights and activations.
        config: transformer; weights are random.
        shape: sizes of the inputs.
        max_ratio: largest accepted ratio of the medians, ours over diffusers'.
        max_error: largest accepted relative error between both results, as a gate before any timing.
    """

    name: str
    dtype: torch.dtype
    config: TransformerConfig
    shape: StepShape
    max_ratio: float
    max_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardResult:
    """One comparison, done.

    Attributes:
        case: what ran.
        num_latent_tokens: latent tokens of a step.
        error: relative error between both results.
        diffusers_times: seconds of every step of diffusers' class.
        isoframe_times: seconds of every step of ours.
    """

    case: ForwardCase
    num_latent_tokens: int
    error: float
    diffusers_times: tuple[float, ...]
    isoframe_times: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Ratio of the medians, ours over diffusers'."""
        return statistics.median(self.isoframe_times) / statistics.median(self.diffusers_times)

    @property
    def is_reached(self) -> bool:
        return self.ratio <= self.case.max_ratio


_DEMO = dataclasses.replace(
    MODEL_13B,
    num_attention_heads=3,
    attention_head_dim=64,
    num_layers=2,
    num_single_layers=4,
    num_refiner_layers=1,
    text_embed_dim=96,
    pooled_projection_dim=64,
    image_proj_dim=64,
    rope_axes_dim=(16, 24, 24),
)
# Two blocks of each kind at the width of the 13B model.
_SLICE = dataclasses.replace(MODEL_13B, num_layers=2, num_single_layers=2)

CASES = {
    case.name: case
    for case in (
        ForwardCase(
            name="demo-fp32", dtype=torch.float32, config=_DEMO,
            shape=StepShape(size=(8, 8), num_text_tokens=9, num_image_tokens=16),
            max_ratio=0.85, max_error=1e-5,
        ),
        ForwardCase(
            name="13b-slice-bf16", dtype=torch.bfloat16, config=_SLICE,
            shape=StepShape(size=(16, 20), num_text_tokens=32, num_image_tokens=60),
            max_ratio=0.85, max_error=0.05,
        ),
        ForwardCase(
            name="13b-slice-fp32", dtype=torch.float32, config=_SLICE,
            shape=StepShape(size=(16, 20), num_text_tokens=32, num_image_tokens=60),
            max_ratio=0.95, max_error=1e-5,
        ),
    )
}  # fmt: skip


def compare_forward(case: ForwardCase, repeats: int) -> ForwardResult:
    """Time ``repeats`` steps of both, one of each in turn, after checking that they agree.

    Ours runs what a step runs: the job's and the section's invariants are computed before, as in a real job.
    diffusers' class has no such split and computes them in every call.

    Raises:
        IsoframeError: the two results differ by more than ``case.max_error``; nothing is timed then.
    """
    diffusers_step, isoframe_step, num_latent_tokens = _build(case)
    with torch.inference_mode():
        expected, actual = diffusers_step(), isoframe_step()
        error = float((actual - expected).abs().max() / expected.abs().max())
        if not error <= case.max_error:
            raise IsoframeError(
                f"{case.name}: the results differ by {error:.2e}, more than {case.max_error:.0e}; nothing was timed"
            )
        times = [(_seconds(diffusers_step), _seconds(isoframe_step)) for _ in range(repeats)]
    diffusers_times, isoframe_times = zip(*times, strict=True)
    return ForwardResult(
        case=case,
        num_latent_tokens=num_latent_tokens,
        error=error,
        diffusers_times=diffusers_times,
        isoframe_times=isoframe_times,
    )


def _build(case: ForwardCase) -> tuple[Callable[[], Tensor], Callable[[], Tensor], int]:
    """One step of diffusers' class, one of ours, and the number of latent tokens."""
    device = torch.device("cpu")
    inputs = draw_inputs(case.config, case.shape, case.dtype, device)
    peer = diffusers_model(case.config, case.dtype, device)
    ours = PackedTransformer(case.config, case.dtype, device)
    for name, tensor in peer.state_dict().items():
        ours.destinations[name].write(tensor)
    step, num_latent_tokens = isoframe_step(ours, inputs)
    return diffusers_step(peer, inputs), step, num_latent_tokens


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
