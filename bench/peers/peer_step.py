"""One denoising step of our transformer against diffusers' class: same weights, same process, alternating."""

import dataclasses
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...engine.families.framepack.transformer import PackedTransformer
from ...engine.families.framepack.transformer_config import TransformerConfig
from ..records.rows import BenchRow
from ..subjects.single_step import (
    MODEL_13B,
    StepShape,
    diffusers_model,
    diffusers_step,
    draw_inputs,
    isoframe_step,
)
from .in_turn import PeerResult, compare_in_turn


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


def compare_steps(case: ForwardCase, repeats: int) -> PeerResult:
    """Time ``repeats`` steps of both, after checking that they agree.

    Ours runs what a step runs: the job's and the section's invariants are computed before, as in a real job.
    diffusers' class has no such split and computes them in every call.

    Raises:
        IsoframeError: the two results differ by more than ``case.max_error``; nothing is timed then.
    """
    device = torch.device("cpu")
    inputs = draw_inputs(case.config, case.shape, case.dtype, device)
    peer = diffusers_model(case.config, case.dtype, device)
    ours = PackedTransformer(case.config, case.dtype, device)
    for name, tensor in peer.state_dict().items():
        ours.destinations[name].write(tensor)
    with torch.inference_mode():
        return compare_in_turn(
            diffusers_step(peer, inputs),
            isoframe_step(ours, inputs)[0],
            what=f"{case.name}: the results",
            limit=case.max_error,
            repeats=repeats,
            find_error=_largest_error,
        )


def _largest_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def forward_rows(results: Mapping[str, PeerResult]) -> list[BenchRow]:
    """Rows of results by the name of their case."""
    rows: list[BenchRow] = []
    for name, result in results.items():
        case = CASES[name]
        shape = case.shape
        rows += result.rows(
            f"forward-{name}",
            "s",
            f"relative error {result.error:.2e} <= {case.max_error:.0e}",
            shape=(shape.num_latent_tokens, shape.num_text_tokens + shape.num_image_tokens),
            dtype=str(case.dtype).removeprefix("torch."),
        )
    return rows


def describe(case: ForwardCase, result: PeerResult) -> str:
    """Times of both and their ratio in one line, and whether the ratio is small enough."""
    theirs, ours = (
        1e3 * statistics.median(times) for times in (result.diffusers_times, result.isoframe_times)
    )
    verdict = "reached" if result.ratio <= case.max_ratio else "MISSED"
    return (
        f"{case.name:16} diffusers {theirs:8.1f} ms  isoframe {ours:8.1f} ms  ratio {result.ratio:.3f} "
        f"(limit {case.max_ratio:.2f}: {verdict}; error {result.error:.1e})"
    )
