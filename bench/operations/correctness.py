"""The gate before any timing: every operation of the model computes what its reference computes, here."""

import torch

from ...engine.model.attention_backends import device_capability
from ...kernels import KERNELS, KernelSpec
from ..meters.accuracy import find_errors, run
from ..records.rows import Gate


def check_operations(device: torch.device) -> Gate:
    """Run every registered operation on ``device`` at one of its test shapes and compare it with its reference.

    The inputs are the same every time: a value that lies between two of an 8-bit format may fall either way.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        failures = [
            f"{name}: {error}" for name, spec in KERNELS.items() for error in _find_failures(spec, device)
        ]
    text = "; ".join(failures) or f"{len(KERNELS)} operations agree with their references on {device}"
    return Gate(is_green=not failures, text=text)


def _find_failures(spec: KernelSpec, device: torch.device) -> list[str]:
    if device.type == "cuda" and device_capability(device) < min(spec.archs):
        return []
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    args = spec.make_inputs(spec.test_shapes[-1], dtype, device)
    with torch.inference_mode():
        actual, expected = run(spec.op, args, spec.mutates), run(spec.reference, args, spec.mutates)
    return find_errors(spec, dtype, actual, expected)
