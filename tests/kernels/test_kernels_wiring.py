"""The transformer's results do not depend on whether its operators run the references or the Triton kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from isoframe.kernels import KERNELS

ROOT = Path(__file__).parents[2]
# Operators of every forward: packing, head and step cache.
COMMON = {"patchify_pack", "aligned_rope", "modulated_layer_norm", "step_change", "reuse_residual"}
# Precision, attention, and the operators that these add.
CASES = [
    ("fp32", "sdpa", {"qk_norm_rope", "gated_residual"}),
    (
        "int8-weight",
        "int8-fp8",
        {"dequantize_unit", "gated_residual", "qk_norm_rope_int8", "int8_attention_fp8"},
    ),
    (
        "int8",
        "int8",
        {
            "modulated_layer_norm_int8",
            "quantize_rows",
            "int8_linear",
            "int8_linear_residual",
            "qk_norm_rope_int8",
            "int8_attention",
        },
    ),
]


@pytest.mark.parametrize(("precision", "attention", "added"), CASES)
def test_a_forward_through_the_triton_kernels_equals_the_reference_path(
    precision: str, attention: str, added: set[str]
) -> None:
    result = interpreted_forward(precision, "float32", attention)
    assert set(result["launches"]) == COMMON | added
    assert result["wrong"] == []
    # A value between two integers may fall to either side, and the blocks magnify it: where something is quantized on
    # the way, only the operators one by one can be held to their limits.
    assert attention != "sdpa" or result["error"] <= 1e-4


def test_every_operator_is_part_of_some_forward() -> None:
    assert COMMON.union(*(added for _, _, added in CASES)) == set(KERNELS)


def interpreted_forward(*arguments: str) -> dict[str, Any]:
    paths = os.pathsep.join(str(ROOT / folder) for folder in (".src", "tests/oracles"))
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": paths}
    program = [sys.executable, "-P", str(ROOT / "tests/oracles/interpreted_forward.py"), *arguments]
    completed = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    result: dict[str, Any] = json.loads(completed.stdout)
    return result
