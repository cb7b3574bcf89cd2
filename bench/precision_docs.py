"""docs/precision.md: what every precision stores, how it computes, and what that changes on the demo model."""

import torch

from ..engine.model_shapes import published_shapes
from ..engine.units import UnitLayout, unit_specs
from ..quant import PRECISIONS, make_format
from .result_docs import Rows, error_table, machines

_HEAD = """# Precisions

Generated from `bench/results/*.jsonl` by `isoframe bench results --page precision --docs docs/precision.md`; a test compares the
two.

`--precision` says how the linear layers inside the blocks are stored and multiplied. Patch embeddings, refiner, modulation,
projections and norms always stay in bf16 or fp32; norms, RoPE and modulation compute in fp32.

"""
_WAYS = {
    "fp32": ("fp32", "exact: the reference on the CPU"),
    "bf16": ("bf16", "rounding: as the published program"),
    "fp16": ("fp16 products, fp32 residual stream and norms", "rounding; weights are checked for its range"),
    "int8": ("int8 x int8 with one scale per token and per output row, int32 sums", "approximate"),
    "int8-weight": ("expanded to the activations' dtype once a block", "approximate, mild"),
    "fp8": ("e4m3 x e4m3 where the card has it, else expanded", "approximate"),
    "nf4": ("expanded from 4-bit codes, one scale for 64 weights", "approximate"),
}
_ERRORS = """
## Measured on the demo model

Beside fp32 on the CPU, where activations are fp32 for every format but bf16 and fp16: so each line is the error of its format
alone. In bf16 and fp16 the timesteps are rounded to bf16 too, as published, and that is most of their distance.

"""


def render_precision(rows: Rows) -> str:
    """The whole page."""
    found = [row for row in rows if row.case.startswith("option-error-") and row.variant in PRECISIONS]
    return "".join([_HEAD, _formats(), _ERRORS, error_table(found), "\n", "\n".join(machines(found)), "\n"])


def _formats() -> str:
    """One line a format; the size of a unit of the published model is that of its blob."""
    lines = ["| precision | a unit of the 13B model | multiplied | class |", "|---|---:|---|---|"]
    spec = unit_specs(published_shapes().transformer)[0]
    for name in PRECISIONS:
        size = UnitLayout(spec, make_format(name, torch.bfloat16)).num_bytes / 2**20
        way, exactness = _WAYS[name]
        lines.append(f"| {name} | {size:.1f} MiB | {way} | {exactness} |")
    return "\n".join(lines) + "\n"
