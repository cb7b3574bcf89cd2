"""One call of diffusers' transformer class: its arguments, sample by sample."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....kernels import num_patches
from ...families.transformer_base import PreparedJob, Transformer
from ...model.packing import ContextGroup, Indices, PackedSection

if TYPE_CHECKING:
    from diffusers.models.modeling_outputs import Transformer2DModelOutput


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForwardCall:
    """Arguments of one forward, for a batch of samples.

    Attributes:
        hidden_states: noisy latents [B, C, T, Y, X].
        timestep: [B].
        guidance: [B], or None.
        text: embeddings [B, L, E], mask [B, L], pooled [B, P].
        image_embeds: [B, I, V].
        history: clean latents at 1x, 2x, 4x, each [B, C, t, Y, X] or None.
        indices: frames of the noisy latents, then of the history's groups.
    """

    hidden_states: Tensor
    timestep: Tensor
    guidance: Tensor | None
    text: tuple[Tensor, Tensor, Tensor]
    image_embeds: Tensor
    history: tuple[Tensor | None, ...]
    indices: tuple[Tensor | None, ...]

    @property
    def size(self) -> tuple[int, int, int]:
        """T, Y, X of the noisy latents."""
        _, _, frames, height, width = self.hidden_states.shape
        return frames, height, width

    def latents(self, sample: int) -> Tensor:
        """Noisy latents [1, C, T, Y, X] of a sample."""
        return _row(self.hidden_states, sample)

    def time(self, sample: int) -> float:
        """Timestep of a sample."""
        return float(self.timestep.reshape(-1)[sample])

    def scale(self, sample: int) -> float | None:
        """Guidance of a sample."""
        return None if self.guidance is None else float(self.guidance.reshape(-1)[sample])

    def groups(self, sample: int) -> list[ContextGroup]:
        """What a sample sees, the coarsest first; a group without latents or indices is left out."""
        named = zip((1, 2, 4), self.history, self.indices[1:], strict=True)
        return [
            ContextGroup(kernel, _row(latents, sample), _positions(indices))
            for kernel, latents, indices in reversed(list(named))
            if latents is not None and indices is not None
        ]

    def num_latent_tokens(self) -> int:
        """Rows of the packed sequence of a sample, before image and prompt."""
        return num_patches(self.size, (1, 2, 2)) + sum(group.num_tokens for group in self.groups(0))

    def pack(self, transformer: Transformer, sample: int) -> PackedSection:
        """History and rotary tables of a sample."""
        noisy = self.indices[0]
        latent = range(self.size[0]) if noisy is None else _positions(noisy)
        return transformer.pack_section(self.groups(sample), latent, self.size)

    def project_image(self, transformer: Transformer, sample: int) -> Tensor:
        """Vision tokens of a sample."""
        return transformer.project_image(_row(self.image_embeds, sample))

    def prepare(
        self, transformer: Transformer, sample: int, timesteps: Tensor, vision: Tensor
    ) -> PreparedJob:
        """What the steps at ``timesteps`` [S] share."""
        embeds, mask, pooled = (_row(x, sample) for x in self.text)
        return transformer.prepare_job(timesteps, self.scale(sample), embeds, mask, pooled, vision)


class DiffusersForward(ABC):
    """Callable with the forward signature of diffusers' class; what a call computes is the subclass's."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of the result, which is what a pipeline casts its inputs to."""

    @abstractmethod
    def velocity(self, call: ForwardCall, sample: int) -> Tensor:
        """Velocity [1, C, T, Y, X] of one sample."""

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
        call = ForwardCall(
            hidden_states=hidden_states,
            timestep=timestep,
            guidance=guidance,
            text=(encoder_hidden_states, encoder_attention_mask, pooled_projections),
            image_embeds=image_embeds,
            history=(latents_clean, latents_history_2x, latents_history_4x),
            indices=(
                indices_latents,
                indices_latents_clean,
                indices_latents_history_2x,
                indices_latents_history_4x,
            ),
        )
        outputs = [self.velocity(call, sample) for sample in range(hidden_states.shape[0])]
        result = torch.cat(outputs).to(hidden_states.device, self.dtype)
        if not return_dict:
            return (result,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=result)


def _positions(indices: Tensor) -> Indices:
    return tuple(indices.flatten().tolist())


def _row(tensor: Tensor, index: int) -> Tensor:
    """Row ``index`` of a batch, with the batch axis."""
    return tensor[index : index + 1]
