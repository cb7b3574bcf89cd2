"""A checkpoint with LoRAs worked into its weights, for conversions: nothing is written to its files."""

import hashlib
from dataclasses import dataclass

from torch import Tensor

from ..checkpoints.checkpoint import Checkpoint
from ..checkpoints.lora import ActiveLoras, LayerShapes, merge


@dataclass(frozen=True, slots=True, kw_only=True)
class MergedCheckpoint(Checkpoint):
    """Gives merged weights, rounded to the dtype of the unmerged ones.

    Attributes:
        loras: with their strengths.
    """

    loras: ActiveLoras

    def tensor(self, name: str) -> Tensor:
        weight = Checkpoint.tensor(self, name)
        return merge(name, weight, self.loras)


def merged_checkpoint(checkpoint: Checkpoint, loras: ActiveLoras) -> MergedCheckpoint:
    """``checkpoint`` with ``loras`` worked in; it has a hash of its own."""
    digest = hashlib.sha256(checkpoint.source_hash.encode())
    for lora, strength in loras:
        digest.update(f"\0{lora.content_hash}:{strength!r}".encode())
    return MergedCheckpoint(
        config=checkpoint.config,
        name=checkpoint.name,
        source_hash=digest.hexdigest(),
        entries=checkpoint.entries,
        scales=checkpoint.scales,
        loras=loras,
    )


def checkpoint_layers(checkpoint: Checkpoint) -> LayerShapes:
    """The layers of ``checkpoint`` that a LoRA can change."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in checkpoint.shapes.items()
        if name.endswith(".weight") and len(shape) > 1
    }
