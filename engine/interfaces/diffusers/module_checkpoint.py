"""The weights of a module in memory, as a checkpoint."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...checkpoints.checkpoint import Checkpoint
from ...checkpoints.tensor_files import FLOAT_DTYPES, TensorEntry
from ...errors import CheckpointError, first_names
from ...families.framepack.transformer_config import TransformerConfig

_NAMES = {dtype: name for name, dtype in FLOAT_DTYPES.items()}
_NOWHERE = Path("(memory)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleCheckpoint(Checkpoint):
    """Gives the weights of a module.

    Attributes:
        weights: by name.
    """

    weights: Mapping[str, Tensor] = field(repr=False)

    def tensor(self, name: str) -> Tensor:
        weight = self.weights[name].detach().cpu()
        return weight if weight.dtype.itemsize > 1 else weight.to(torch.bfloat16)


def module_checkpoint(module: nn.Module, config: Mapping[str, Any], name: str) -> ModuleCheckpoint:
    """The weights of ``module`` as they are now, with the configuration of diffusers' class.

    Raises:
        CheckpointError: another model's, or weights that are not in memory or not floating-point.
    """
    weights = module.state_dict()
    absent = [key for key, weight in weights.items() if weight.is_meta]
    if absent:
        raise CheckpointError(
            f"the weights of {name} must be in memory, {len(absent)} are not ({first_names(absent)}): accelerate before "
            "offloading, or give source="
        )
    other = [f"{key} ({weight.dtype})" for key, weight in weights.items() if weight.dtype not in _NAMES]
    if other:
        raise CheckpointError(
            f"the weights of {name} must be floating-point, got {first_names(other)}: load it without quantization, "
            "EngineConfig(precision=...) quantizes"
        )
    return ModuleCheckpoint(
        config=TransformerConfig.from_dict(config, source=name),
        name=name,
        source_hash=_digest(weights),
        entries={key: _entry(weight) for key, weight in weights.items()},
        scales={},
        weights=weights,
    )


def _entry(weight: Tensor) -> TensorEntry:
    return TensorEntry(
        path=_NOWHERE,
        dtype=_NAMES[weight.dtype],
        shape=tuple(weight.shape),
        start=0,
        num_bytes=weight.nbytes,
    )


def _digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and all bytes: a LoRA may have been worked into any of the weights."""
    digest = hashlib.sha256()
    for name, weight in weights.items():
        digest.update(f"{name}\0{weight.dtype}\0{list(weight.shape)}\0".encode())
        digest.update(weight.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
