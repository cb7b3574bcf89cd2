"""A transformer as the loop over sections and steps knows it: it prepares a job once, packs a section and runs a step.

What these give back is handed on unseen: a :class:`PreparedJob` and a packed section go into :meth:`Transformer.step`.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from ...quant import DenseFormat, WeightFormat
from ..checkpoints.checkpoint import Checkpoint, load_into
from ..checkpoints.destinations import Destination
from ..checkpoints.lora import ActiveLoras
from ..model.attention import SDPA_ATTENTION, SelfAttention
from ..model.attention_backends import AttentionShape
from ..model.lora_layers import LoraUnits, SideBranch, unit_branches
from ..model.outer_weights import OuterWeights, ReadWeight
from ..model.packing import ContextGroup, Indices, PackedSection
from ..model.precision import UnitSpec
from ..model.units import ResidentUnits, UnitLayout, UnitSource


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """What the steps of a section use that is not the transformer's own.

    Attributes:
        units: where the blocks' weights come from, the LoRAs at work beside them.
        attention: joint self-attention of the blocks; it may keep something from one step of the section to the next.
        token_chunk: most tokens whose MLP activations exist at a time; None for all.
    """

    units: UnitSource
    attention: SelfAttention = SDPA_ATTENTION
    token_chunk: int | None = None


class PreparedJob(ABC):
    """What all sections and steps of a job share in one branch of guidance."""

    @abstractmethod
    def with_image(self, vision_tokens: Tensor) -> "PreparedJob":
        """This prepared job with the tokens [1, I, D] of another image; what does not depend on the image is shared."""


class StepPass(ABC):
    """One forward, split where a step cache decides: embedding, blocks, head."""

    @property
    @abstractmethod
    def noisy_tokens(self) -> Tensor:
        """View of the noisy tokens [1, num_noisy, D]; the embedding until :meth:`hidden` runs."""

    @property
    @abstractmethod
    def first_input(self) -> Tensor:
        """Modulated norm of the latent tokens [1, N_latent, D]: the input of the first attention."""

    @abstractmethod
    def hidden(self) -> Tensor:
        """Run all blocks; the noisy tokens [1, num_noisy, D]. Call once: the embedding is consumed."""

    @abstractmethod
    def head(self, hidden: Tensor) -> Tensor:
        """Velocity [1, C, T, Y, X] from ``hidden``."""

    @abstractmethod
    def reuse(self, residual: Tensor) -> Tensor:
        """Velocity if the blocks added ``residual`` [1, num_noisy, D] to the noisy tokens; runs no block."""

    def compute(self) -> Tensor:
        """Velocity of the whole forward."""
        return self.head(self.hidden())


class Transformer(ABC):
    """Weights and forward pass of one checkpoint, for one sample at a time.

    Attributes:
        config: shapes of the checkpoint, as its family reads them.
        dtype: of activations.
        residual_dtype: of the residual stream: fp32 beside fp16 activations, else their dtype.
        device: where it computes.
        weight_format: of the blocks' linear layers.
        outer_destinations: where the checkpoint's tensors outside the blocks go, by name.
        units: where the blocks' weights come from where a step's context names no others.
    """

    def __init__(
        self,
        config: Any,
        dtype: torch.dtype,
        device: torch.device,
        *,
        weight_format: WeightFormat | None = None,
        job_device: torch.device | None = None,
        has_fp32_head: bool = False,
        units: UnitSource | None = None,
        read_job_weight: ReadWeight | None = None,
    ) -> None:
        """Allocate the weights; :meth:`filled` reads them.

        Args:
            config: shapes of the checkpoint.
            dtype: of activations, and of all weights outside the blocks.
            device: where it computes and its weights live.
            job_device: where the weights live that only the start of a job needs, 30 % of the published model; None
                for ``device``.
            weight_format: of the blocks' linear layers, for activations in ``dtype``; None stores them in ``dtype``.
            has_fp32_head: run the output projection in fp32, as the published program does in bf16.
            units: where the blocks' weights come from where a step's context names no others; None allocates them all.
            read_job_weight: gives the weights that only the start of a job needs, each when it computes; None
                allocates them on ``job_device``.

        Raises:
            CheckpointError: the checkpoint has a feature outside its family.
        """
        self.config = config
        self.dtype = dtype
        # fp16 has too small a range for the residual stream.
        self.residual_dtype = torch.float32 if dtype == torch.float16 else dtype
        self.device = device
        self.has_fp32_head = has_fp32_head
        self._weights = OuterWeights(self.residual_dtype, device)
        self._job_weights = OuterWeights(self.residual_dtype, job_device or device, read_job_weight)
        self._build(self._weights, self._job_weights)
        self._build_blocks(self._weights)
        self.weight_format = weight_format or DenseFormat(dtype)
        self.outer_destinations: dict[str, Destination] = {
            **self._weights.destinations,
            **self._job_weights.destinations,
        }
        if units is None:
            layouts = [UnitLayout(spec, self.weight_format) for spec in self.unit_specs]
            units = ResidentUnits(layouts, device)
        self.units: UnitSource = units
        self._branches: Sequence[Mapping[str, SideBranch]] = ()

    @abstractmethod
    def _build(self, weights: OuterWeights, job_weights: OuterWeights) -> None:
        """Make the layers outside the blocks; ``job_weights`` gives those that only the start of a job needs."""

    @abstractmethod
    def _build_blocks(self, weights: OuterWeights) -> None:
        """Make the blocks, which own what is not in their units."""

    @property
    @abstractmethod
    def unit_specs(self) -> tuple[UnitSpec, ...]:
        """All units in execution order."""

    def filled(self, checkpoint: Checkpoint) -> Self:
        """This transformer, with all its weights read from ``checkpoint``, one tensor in flight."""
        load_into(checkpoint, self.destinations)
        return self

    @property
    def destinations(self) -> dict[str, Destination]:
        """Where every tensor of the checkpoint goes; those of the blocks only while all units are resident."""
        units = self.units
        return self.outer_destinations | (units.destinations() if isinstance(units, ResidentUnits) else {})

    @property
    def layer_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of the weight of every layer that a LoRA can change, by checkpoint name without ``.weight``."""
        blocks = {
            source: (rows, layer.in_features)
            for spec in self.unit_specs
            for layer in spec.layers
            for source, rows in zip(layer.sources, layer.rows, strict=True)
        }
        return blocks | self._weights.shapes | self._job_weights.shapes

    def attention_shape(self, num_tokens: int) -> AttentionShape:
        """The joint self-attention of the blocks over ``num_tokens`` latent and condition tokens."""
        config = self.config
        return AttentionShape(
            num_tokens=num_tokens, num_heads=config.num_attention_heads, head_dim=config.attention_head_dim,
            dtype=self.dtype,
        )  # fmt: skip

    def with_loras(self, loras: ActiveLoras) -> Self:
        """A transformer with LoRAs beside the weights of this one, which it shares; this one without any."""
        loras = [(lora, strength) for lora, strength in loras if strength != 0]
        if not loras:
            return self
        adapted = copy.copy(self)
        adapted._build(
            self._weights.with_loras(loras, self.device),
            self._job_weights.with_loras(loras, torch.device("cpu")),
        )
        adapted._branches = unit_branches(self.unit_specs, loras, self.dtype, self.device)
        return adapted

    def context(
        self,
        units: UnitSource | None = None,
        attention: SelfAttention = SDPA_ATTENTION,
        token_chunk: int | None = None,
    ) -> StepContext:
        """What steps use, with the LoRAs of this transformer beside ``units``; None takes its own."""
        units = units or self.units
        if self._branches:
            units = LoraUnits(units, self._branches)
        return StepContext(units=units, attention=attention, token_chunk=token_chunk)

    @abstractmethod
    def project_image(self, image_embeds: Tensor) -> Tensor:
        """Vision tokens [1, I, D] from image embeddings [1, I, V]."""

    @abstractmethod
    def prepare_job(
        self,
        timesteps: Tensor,
        guidance: float | None,
        text_embeds: Tensor,
        text_mask: Tensor | None,
        pooled_embeds: Tensor,
        vision_tokens: Tensor,
    ) -> PreparedJob:
        """Compute what all sections and steps share.

        Args:
            timesteps: ``[S]``, 1000 sigma of every step.
            guidance: distilled guidance scale times 1000; None for a model without it.
            text_embeds: ``[1, L, E]``.
            text_mask: ``[1, L]``, nonzero for valid tokens, which come first; None if all are.
            pooled_embeds: ``[1, P]``.
            vision_tokens: ``[1, I, D]`` from :meth:`project_image`.
        """

    @abstractmethod
    def pack_section(
        self, groups: Sequence[ContextGroup], latent: Indices, size: tuple[int, int, int]
    ) -> PackedSection:
        """Embed what a section sees and build its rotary tables.

        Args:
            groups: in packed order, the coarsest first; the noisy tokens follow.
            latent: positions of the noisy latents.
            size: T, Y, X of the noisy latents.
        """

    @abstractmethod
    def step(
        self,
        latents: Tensor,
        step: int,
        job: Any,
        section: PackedSection,
        context: StepContext | None = None,
    ) -> StepPass:
        """One forward of the noisy latents [1, C, T, Y, X] at ``step``; nothing runs yet.

        Without a ``context`` of :meth:`context` it takes the transformer's own units and torch's attention.

        Args:
            latents: fp32, with values of ``residual_dtype``.
            step: position among the timesteps of ``job``.
            job: of this transformer's :meth:`prepare_job`.
            section: of this transformer's :meth:`pack_section`.
            context: units, attention and token chunk.
        """
