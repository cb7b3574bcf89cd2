"""Drop-in for diffusers' ``HunyuanVideoFramepackTransformer3DModel``."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

import torch
from torch import Tensor

from ..checkpoint import Checkpoint, open_transformer
from ..components import find_components
from ..destinations import DenseTensor, EncodedWeight
from ..history import CleanLatents
from ..invariants import JobInvariants
from ..packing import PackedSection
from ..transformer import FrameIndices, PackedTransformer
from ..transformer_config import TransformerConfig

if TYPE_CHECKING:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput

T = TypeVar("T")

# True guidance calls the transformer twice a step, with other conditioning.
_NUM_BRANCHES = 2


def load_transformer(
    folder_or_id: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    local_files_only: bool = False,
) -> "FramepackTransformer":
    """Load a transformer that is called as diffusers' class is.

    Args:
        folder_or_id: folder, single .safetensors file, Hub id, or "demo".
        dtype: of weights and activations; the output projection stays in it, as in diffusers.
        device: where the weights live and the forward runs.
        local_files_only: never ask the Hub.

    Raises:
        CheckpointError: the checkpoint is missing, damaged or of another model.
    """
    is_demo = os.fspath(folder_or_id) == "demo"
    source = find_components("demo").transformer if is_demo else folder_or_id
    checkpoint = open_transformer(source, local_files_only=local_files_only)
    return FramepackTransformer(checkpoint, dtype, torch.device(device))


class FramepackTransformer:
    """Callable with the forward signature of diffusers' class.

    Every call recomputes everything, until :meth:`begin_section` is called: then what depends on the
    conditioning and the history is cached, by identity and version of the tensors passed.
    Tensors made under ``torch.inference_mode`` carry no version and are never cached.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        """Load the weights; see :func:`load_transformer`."""
        self._checkpoint = checkpoint
        self.transformer = PackedTransformer.load(checkpoint, dtype, device)
        self._vision: _TensorCache[Tensor] | None = None
        self._jobs: _TensorCache[JobInvariants] | None = None
        self._sections: _TensorCache[PackedSection] | None = None

    @property
    def config(self) -> TransformerConfig:
        return self.transformer.config

    @property
    def dtype(self) -> torch.dtype:
        return self.transformer.dtype

    @property
    def device(self) -> torch.device:
        return self.transformer.device

    def parameters(self) -> Iterator[Tensor]:
        """The weights, without gradients: to count them, and to ask for their dtype and device."""
        for destination in self.transformer.destinations.values():
            if isinstance(destination, DenseTensor):
                yield destination.tensor
            elif isinstance(destination, EncodedWeight):
                yield from destination.views.values()

    def to(
        self,
        *target: "torch.device | torch.dtype | str",
        device: "torch.device | str | None" = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Move and cast as ``torch.nn.Module.to`` does; the weights are read from the checkpoint again."""
        for value in target:
            if isinstance(value, torch.dtype):
                dtype = value
            else:
                device = value
        wanted = dtype or self.dtype, torch.device(self.device if device is None else device)
        if wanted != (self.dtype, self.device):
            # Two copies of the weights at a time may not fit.
            del self.transformer
            self.transformer = PackedTransformer.load(self._checkpoint, *wanted)
            self._vision = self._jobs = self._sections = None
        return self

    def eval(self) -> Self:
        """Nothing to do: there is no training mode."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Accepts False, which always holds."""
        if requires_grad:
            raise ValueError("requires_grad must be False, got True: the weights are for inference only")
        return self

    def begin_section(self, num_steps: int) -> None:
        """Cache from here on; history of an earlier section is dropped.

        Args:
            num_steps: steps of the section; the conditioning of as many timesteps is kept, for two branches.
        """
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        self._sections = _TensorCache(_NUM_BRANCHES)
        if self._jobs is None or self._jobs.capacity != _NUM_BRANCHES * num_steps:
            self._jobs = _TensorCache(_NUM_BRANCHES * num_steps)
            self._vision = _TensorCache(_NUM_BRANCHES)

    @torch.no_grad()
    def __call__(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor,
        pooled_projections: Tensor,
        image_embeds: Tensor,
        indices_latents: Tensor | None,
        guidance: Tensor | None = None,
        latents_clean: Tensor | None = None,
        indices_latents_clean: Tensor | None = None,
        latents_history_2x: Tensor | None = None,
        indices_latents_history_2x: Tensor | None = None,
        latents_history_4x: Tensor | None = None,
        indices_latents_history_4x: Tensor | None = None,
        attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> "tuple[Tensor] | Transformer2DModelOutput":
        """Velocity for ``hidden_states`` [B, C, T, Y, X]; arguments as in diffusers.

        Samples run one after the other. A history group may be None together with its indices.
        """
        if attention_kwargs:
            raise ValueError(f"attention_kwargs are not supported, got {sorted(attention_kwargs)}")
        history = (
            latents_clean,
            latents_history_2x,
            latents_history_4x,
            indices_latents,
            indices_latents_clean,
            indices_latents_history_2x,
            indices_latents_history_4x,
        )
        text = (encoder_hidden_states, encoder_attention_mask, pooled_projections)
        outputs = []
        for sample in range(hidden_states.shape[0]):
            latents = _sample(hidden_states, sample)
            section = self._section(sample, history, tuple(latents.shape[2:]))
            job = self._job(sample, timestep, guidance, text, image_embeds)
            outputs.append(self.transformer.step(latents, 0, job, section).compute())
        result = torch.cat(outputs).to(self.dtype)
        if not return_dict:
            return (result,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=result)

    def _section(
        self, sample: int, history: tuple[Tensor | None, ...], size: tuple[int, ...]
    ) -> PackedSection:
        clean, clean_2x, clean_4x, *indices = history

        def pack() -> PackedSection:
            groups = CleanLatents(
                *(None if x is None else _sample(x, sample) for x in (clean, clean_2x, clean_4x))
            )
            latent, *others = (None if x is None else tuple(x.flatten().tolist()) for x in indices)
            frames = FrameIndices(
                latent=range(size[0]) if latent is None else latent,
                clean=others[0],
                clean_2x=others[1],
                clean_4x=others[2],
            )
            return self.transformer.pack_section(groups, frames, (size[0], size[1], size[2]))

        return _cached(self._sections, sample, size, history, pack)

    def _job(
        self,
        sample: int,
        timestep: Tensor,
        guidance: Tensor | None,
        text: tuple[Tensor, Tensor, Tensor],
        image_embeds: Tensor,
    ) -> JobInvariants:
        vision = _cached(
            self._vision,
            sample,
            None,
            (image_embeds,),
            lambda: self.transformer.project_image(_sample(image_embeds, sample)),
        )
        time = timestep.reshape(-1)[sample : sample + 1]
        scale = None if guidance is None else float(guidance.reshape(-1)[sample])

        def prepare() -> JobInvariants:
            embeds, mask, pooled = (_sample(x, sample) for x in text)
            return self.transformer.prepare_job(time, scale, embeds, mask, pooled, vision)

        return _cached(self._jobs, sample, (float(time), scale), (*text, image_embeds), prepare)


@dataclass(frozen=True, slots=True)
class _Entry(Generic[T]):
    key: object
    tensors: tuple[Tensor | None, ...]
    versions: tuple[int, ...]
    value: T


class _TensorCache(Generic[T]):
    """Values computed from tensors, found again by identity and version; of each sample the oldest goes first."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._entries: dict[int, list[_Entry[T]]] = {}

    def get(
        self, sample: int, key: object, tensors: tuple[Tensor | None, ...], compute: Callable[[], T]
    ) -> T:
        if any(tensor is not None and tensor.is_inference() for tensor in tensors):
            return compute()
        versions = tuple(0 if tensor is None else tensor._version for tensor in tensors)
        entries = self._entries.setdefault(sample, [])
        for entry in entries:
            same = all(a is b for a, b in zip(entry.tensors, tensors, strict=True))
            if same and entry.key == key and entry.versions == versions:
                return entry.value
        entry = _Entry(key, tensors, versions, compute())
        entries.append(entry)
        del entries[: -self.capacity]
        return entry.value


def _cached(
    cache: _TensorCache[T] | None,
    sample: int,
    key: object,
    tensors: tuple[Tensor | None, ...],
    compute: Callable[[], T],
) -> T:
    return compute() if cache is None else cache.get(sample, key, tensors, compute)


def _sample(tensor: Tensor, index: int) -> Tensor:
    """Row ``index`` of a batch, with the batch axis."""
    return tensor[index : index + 1]
