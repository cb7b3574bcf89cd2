"""Checks that operations share; each raises a ValueError that names the argument."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def check_dtype(name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...] = FLOATS) -> None:
    if tensor.dtype not in allowed:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in allowed)
        raise ValueError(f"{name} must be {names}, got {str(tensor.dtype).removeprefix('torch.')}")


def check_shape(name: str, tensor: Tensor, letters: str, shape: tuple[int, ...]) -> None:
    """Compare with a shape that other arguments imply; ``letters`` are those of the docstring, as ``[B, N, D]``."""
    if tensor.shape != shape:
        raise ValueError(f"{name} must be {letters} = {shape}, got {tuple(tensor.shape)}")


def check_same_device(**tensors: Tensor | None) -> None:
    given = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    first, *others = given
    for name in others:
        if given[name].device != given[first].device:
            raise ValueError(
                f"{name} must be on the device of {first}, {given[first].device}, got {given[name].device}"
            )
