"""A language model whose layers are read from its files when they compute, one at a time.

LLaMA's 30 layers are 13 GB in fp16 and serve one prompt: they need neither the RAM nor the device memory at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..checkpoints.checkpoint import shape_problems
from ..checkpoints.tensor_files import TensorEntry, map_tensor, open_tensor_file
from ..errors import CheckpointError, count_problems

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaModel

# Checkpoints of a whole causal model carry it, those of the bare model do not.
_PREFIX = "model."


def load_llama_layerwise(
    config: "LlamaConfig", folder: Path, dtype: torch.dtype, device: torch.device
) -> "LlamaModel":
    """A LLaMA without weights in memory; a forward holds those of one layer on ``device``.

    Args:
        config: of the model; it may ask for fewer layers than the files have.
        folder: with the safetensors files.
        dtype: of parameters and activations.
        device: where the layers compute; token ids may be anywhere.

    Returns:
        The model less its final norm: the output is the hidden state after the last layer that ``config`` asks for.

    Raises:
        CheckpointError: a tensor is missing or misshapen.
    """
    from transformers import LlamaModel

    entries = _entries(folder)
    with torch.device("meta"):
        llama = LlamaModel(config).to(dtype).eval()
    llama.norm = torch.nn.Identity()
    _check(llama, entries, folder)
    llama.embed_tokens = MappedEmbedding(entries["embed_tokens.weight"], dtype, device)
    # Its frequencies are computed at construction, on meta they have no values.
    llama.rotary_emb = type(llama.rotary_emb)(config=config).to(device)
    for index, layer in enumerate(llama.layers):
        _read_when_called(layer, f"layers.{index}.", entries, device)
    return llama


class MappedEmbedding(torch.nn.Module):
    """Rows of an embedding table, read from its file."""

    def __init__(self, entry: TensorEntry, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self._entry = entry
        self._dtype = dtype
        self._device = device

    def forward(self, ids: Tensor) -> Tensor:
        rows = torch.nn.functional.embedding(ids.cpu(), map_tensor(self._entry))
        return rows.to(self._device, self._dtype)


def _read_when_called(
    layer: torch.nn.Module, prefix: str, entries: Mapping[str, TensorEntry], device: torch.device
) -> None:
    def read(module: torch.nn.Module, *_: Any) -> None:
        module.to_empty(device=device)
        for name, parameter in module.named_parameters():
            parameter.data.copy_(map_tensor(entries[prefix + name]))

    def drop(module: torch.nn.Module, *_: Any) -> None:
        module.to("meta")

    layer.register_forward_pre_hook(read)
    layer.register_forward_hook(drop, always_call=True)


def _entries(folder: Path) -> dict[str, TensorEntry]:
    return {
        name.removeprefix(_PREFIX): entry
        for path in sorted(folder.glob("*.safetensors"))
        for name, entry in open_tensor_file(path).entries.items()
    }


def _check(llama: torch.nn.Module, entries: Mapping[str, TensorEntry], folder: Path) -> None:
    wanted = {name: tuple(parameter.shape) for name, parameter in llama.named_parameters()}
    # A file may have more layers, and a head.
    shapes = {name: entry.shape for name, entry in entries.items() if name in wanted}
    if found := count_problems(shape_problems(shapes, wanted)):
        raise CheckpointError(
            f"the tensors in {folder} are not those of LlamaModel: {found}; copy or download it again"
        )
