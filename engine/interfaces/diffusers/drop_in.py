"""Callable as diffusers' ``HunyuanVideoFramepackTransformer3DModel`` is, one forward at a time."""

import os
from collections.abc import Iterator
from typing import Self

import torch
from torch import Tensor

from ...checkpoints.checkpoint import Checkpoint
from ...checkpoints.destinations import DenseTensor, EncodedWeight
from ...companions.components import find_components
from ...families.framepack.transformer import PackedTransformer
from ...families.framepack.transformer_config import TransformerConfig
from ...families.opening import open_transformer
from ...families.transformer_base import PreparedJob, Transformer
from ...model.packing import PackedSection
from .forward_call import DiffusersForward, ForwardCall
from .versioned_cache import VersionedCache

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


class FramepackTransformer(DiffusersForward):
    """Callable with the forward signature of diffusers' class.

    Every call recomputes everything, until :meth:`begin_section` is called: then what depends on the
    conditioning and the history is cached, by identity and version of the tensors passed.
    Tensors made under ``torch.inference_mode`` carry no version and are never cached.
    """

    _vision: VersionedCache[Tensor]
    _jobs: VersionedCache[PreparedJob]
    _sections: VersionedCache[PackedSection]

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        """Load the weights; see :func:`load_transformer`."""
        self._checkpoint = checkpoint
        self.transformer: Transformer = PackedTransformer(checkpoint.config, dtype, device).filled(checkpoint)
        self._forget()

    @property
    def config(self) -> TransformerConfig:
        config: TransformerConfig = self.transformer.config
        return config

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
            self.transformer = PackedTransformer(self._checkpoint.config, *wanted).filled(self._checkpoint)
            self._forget()
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
        self._sections = VersionedCache(_NUM_BRANCHES)
        if self._jobs.capacity != _NUM_BRANCHES * num_steps:
            self._jobs = VersionedCache(_NUM_BRANCHES * num_steps)
            self._vision = VersionedCache(_NUM_BRANCHES)

    def _forget(self) -> None:
        """Keep nothing from call to call, until a section begins."""
        self._vision, self._jobs, self._sections = VersionedCache(0), VersionedCache(0), VersionedCache(0)

    def velocity(self, call: ForwardCall, sample: int) -> Tensor:
        latents = call.latents(sample)
        section = self._sections.get(
            sample,
            call.size,
            (*call.history, *call.indices),
            lambda: call.pack(self.transformer, sample),
        )
        return self.transformer.step(latents, 0, self._job(call, sample), section).compute()

    def _job(self, call: ForwardCall, sample: int) -> PreparedJob:
        image = (call.image_embeds,)
        vision = self._vision.get(sample, None, image, lambda: call.project_image(self.transformer, sample))

        def prepare() -> PreparedJob:
            time = call.timestep.reshape(-1)[sample : sample + 1]
            return call.prepare(self.transformer, sample, time, vision)

        key = call.time(sample), call.scale(sample)
        return self._jobs.get(sample, key, (*call.text, *image), prepare)
