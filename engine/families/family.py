"""What the engine asks of an architecture of models; nothing outside this room knows how one is built inside.

A :class:`Family` gives nine answers: configuration, units, what is prepared once, packing, forward (these three are the
transformer's, see ``transformer_base``), layout, phases of a section, codec and prompts. :class:`ModelSizes` adds the planner's numbers.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..checkpoints.lora_names import LoraAliases
from ..files import read_json
from ..model.precision import PRECISIONS, Precision, UnitSpec
from ..request.config import SamplingConfig

if TYPE_CHECKING:
    from .transformer_base import Transformer


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """Tokens of one packed sequence.

    Attributes:
        noisy: of the latents that are denoised.
        clean: of the history.
        vision: of the image.
        text: of the prompt.
        latent_values: values of the noisy latents.
    """

    noisy: int
    clean: int
    vision: int
    text: int
    latent_values: int

    @property
    def latent(self) -> int:
        return self.noisy + self.clean

    @property
    def condition(self) -> int:
        return self.vision + self.text

    @property
    def total(self) -> int:
        return self.latent + self.condition


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockWork:
    """FLOPs (or seconds) of one block in a forward, in the order in which it takes its units and gives them back.

    Attributes:
        units: taken one after the other, each when its projection begins.
        projections: of each unit, for queries, keys and values.
        attention: while all units are held.
        rests: of each unit, from the attention's output on; the unit is given back at their end.
    """

    units: tuple[int, ...]
    projections: tuple[float, ...]
    attention: float
    rests: tuple[float, ...]

    @property
    def products(self) -> float:
        """Work of all matrix products of the block: projections and rests of its units."""
        return sum(self.projections) + sum(self.rests)

    def scaled(self, products: float, attention: float) -> "BlockWork":
        """This work with matrix products multiplied by ``products`` and the attention by ``attention``."""
        return BlockWork(
            units=self.units,
            projections=tuple(products * part for part in self.projections),
            attention=attention * self.attention,
            rests=tuple(products * part for part in self.rests),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSizes:
    """Bytes of a transformer's weights in one precision.

    Attributes:
        units: of every unit's blob, in execution order.
        per_step: outside the units, and needed by every step.
        once: needed by the start of a job alone.
        largest_once_layer: the largest layer of ``once``: those of a stored model come one at a time.
    """

    units: tuple[int, ...]
    per_step: int
    once: int
    largest_once_layer: int


@dataclass(frozen=True, kw_only=True)
class StepSizes(ABC):
    """Bytes on the device and arithmetic of the steps of one phase of a section.

    Attributes:
        precision: of the units.
        sequence: tokens.
        num_steps: steps of the phase.
        num_branches: forwards of a step: 2 with true guidance, else 1.
        step_cache: as in a configuration.
        attention: "float" (any backend on 16 or 32 bit), "int8" (q and k), or "either", where it is measured later.
    """

    precision: Precision
    sequence: TokenCounts
    num_steps: int
    num_branches: int = 1
    step_cache: str = "none"
    attention: str = "float"

    @property
    @abstractmethod
    def weights(self) -> WeightSizes:
        """Bytes of the transformer's weights in this precision."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[BlockWork]:
        """Work of the blocks in one forward, in execution order."""

    @abstractmethod
    def stream_bytes(self) -> int:
        """Bytes of the residual stream, counted once for every block that it passes."""

    @abstractmethod
    def embeds_bytes(self) -> int:
        """Bytes of the encoded prompts and image, which stay for the whole job."""

    @abstractmethod
    def job_table_bytes(self) -> int:
        """Bytes of what a job computes once and keeps, also while it decodes."""

    @abstractmethod
    def prepare_bytes(self) -> int:
        """Most bytes at once while a job computes what its steps share, weights left out."""

    @abstractmethod
    def table_bytes(self) -> int:
        """Bytes of the job's tables and of what a section computes once."""

    @abstractmethod
    def activation_bytes(self, token_chunk: int | None) -> int:
        """Most bytes that a step holds at once, tables and weights left out.

        Args:
            token_chunk: tokens that go through an MLP at once; None for all.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderShape:
    """An encoder of prompts or images.

    Attributes:
        reads: what it encodes, "text" or "image".
        width: channels of a token.
        num_heads: heads of the attention.
        num_tokens: most tokens of one input.
        depth: layers that are run.
        layer_params: parameters of one of them.
        other_params: embeddings and outer norms that are used.
        is_layerwise: in memory is one layer at a time, and the table of embeddings stays in its file.
    """

    reads: str
    width: int
    num_heads: int
    num_tokens: int
    depth: int
    layer_params: int
    other_params: int
    is_layerwise: bool = False

    @property
    def num_params(self) -> int:
        return self.depth * self.layer_params + self.other_params

    def activation_bytes(self, value_bytes: int) -> int:
        """Most that one layer holds, the scores of an unfused attention included."""
        tokens = self.num_tokens
        return value_bytes * (18 * tokens * self.width + 4 * self.num_heads * tokens**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecWork(ABC):
    """Decoding or encoding at one size; weights are not counted.

    Attributes:
        size: height and width in pixels.
        tile: edge of the spatial tiles in pixels; None works on the whole picture.
        value_bytes: of a weight or activation.
    """

    size: tuple[int, int]
    tile: int | None
    value_bytes: int = 2

    @abstractmethod
    def decode_bytes(self, num_latents: int) -> int:
        """Most that decoding ``num_latents`` latent frames holds."""

    @abstractmethod
    def decode_workspace_bytes(self, num_latents: int) -> int:
        """What cuDNN may ask for at the largest convolution: its input and result in another layout."""

    @abstractmethod
    def encode_bytes(self, num_frames: int = 1) -> int:
        """Most that encoding an image or a clip holds."""

    @abstractmethod
    def encode_workspace_bytes(self, num_frames: int = 1) -> int:
        """What cuDNN may ask for at the largest convolution of encoding: its input and result in another layout."""

    @abstractmethod
    def decode_flops(self, num_latents: int) -> float:
        """Multiplications and additions of decoding ``num_latents`` latent frames."""


def tile_stride(tile: int) -> int:
    """Pixels from one tile to the next: they overlap by a quarter, as the published 256 px tiles every 192 px do."""
    return int(tile * 0.75)


class ModelSizes(ABC):
    """The planner's numbers of a model and its companions.

    Attributes:
        name: for tables.
        transformer: the configuration of the transformer, as the family reads it.
    """

    name: str
    transformer: Any

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """Channels of the latents."""

    @property
    @abstractmethod
    def vae_params(self) -> int:
        """Parameters of both halves of the VAE."""

    @property
    @abstractmethod
    def encoders(self) -> Sequence[EncoderShape]:
        """The encoders of prompts and images, in the order in which they run."""

    @abstractmethod
    def phases(
        self,
        sampling: SamplingConfig,
        size: tuple[int, int],
        precision: Precision,
        *,
        attention: str,
        num_text_tokens: int | None,
    ) -> Sequence[StepSizes]:
        """The phases of a section in order.

        Args:
            sampling: sections, steps, guidance and step cache of the job.
            size: (height, width) in pixels.
            precision: of the units.
            attention: as :attr:`StepSizes.attention`.
            num_text_tokens: tokens of the prompt; None for the most that a prompt may have.
        """

    @property
    def num_image_tokens(self) -> int:
        """Tokens of one image."""
        return next(encoder.num_tokens for encoder in self.encoders if encoder.reads == "image")

    def sequence(self, sampling: SamplingConfig, size: tuple[int, int]) -> TokenCounts:
        """The longest sequence of a section's phases, with a prompt of the most tokens; arguments as for :meth:`phases`."""
        phases = self.phases(sampling, size, PRECISIONS["bf16"], attention="float", num_text_tokens=None)
        return max((phase.sequence for phase in phases), key=lambda sequence: sequence.total)

    @abstractmethod
    def codec_work(self, size: tuple[int, int], tile: int | None, value_bytes: int) -> CodecWork:
        """The VAE's work; arguments as the attributes of :class:`CodecWork`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedModel:
    """What a plan needs of a model.

    Attributes:
        shapes: of the transformer and its companions.
        buckets: (height, width) in pixels that it was trained on.
        order: "forward" or "inverted".
    """

    shapes: ModelSizes
    buckets: tuple[tuple[int, int], ...]
    order: str


@dataclass(frozen=True, slots=True)
class EncoderKind:
    """How an encoder is loaded with transformers.

    Attributes:
        model_types: what its ``config.json`` may call it.
        model_class: class in transformers.
        changes: values of the configuration that leave out what is not used.
        num_unused_layers: last layers whose output nobody reads; the others are read from their files one at a time.
            None for an encoder that is loaded whole.
    """

    model_types: tuple[str, ...]
    model_class: str
    changes: Mapping[str, object] = field(default_factory=dict)
    num_unused_layers: int | None = None


@dataclass(frozen=True, slots=True)
class Family(ABC):
    """An architecture, and one model of it.

    Attributes:
        config: sizes of the model's transformer.
        config_class: of ``config``.
        data: folder of the tables: models and companions on the Hub, profile, names of LoRA layers.
        vae_class: class of the VAE in diffusers.
        encoders: of prompts and images, by their names in diffusers' pipeline.
        max_prompt_tokens: tokens of a prompt that are read.
    """

    config: Any
    config_class: ClassVar[type]
    data: ClassVar[Path]
    vae_class: ClassVar[str]
    encoders: ClassVar[Mapping[str, EncoderKind]]
    max_prompt_tokens: ClassVar[int]

    @classmethod
    @abstractmethod
    def recognises(cls, class_name: str | None, tensor_names: Collection[str]) -> bool:
        """Whether a transformer is of this family, by the ``_class_name`` of its configuration or by its tensors."""

    @classmethod
    @abstractmethod
    def read_config(
        cls, raw: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]] | None = None, *, source: str
    ) -> Any:
        """The configuration in ``raw``, or the one that tensors of these ``shapes`` have; ``source`` names it in errors.

        Raises:
            CheckpointError: another model's, or keys that are unknown, missing or out of range.
        """

    @classmethod
    def hub_models(cls) -> dict[str, str]:
        """The published checkpoints, by their ids on the Hub, and the order that each was trained for."""
        models: dict[str, str] = read_json(cls.data / "companions.json")["models"]
        return models

    @classmethod
    def companions(cls, config: Any = None) -> dict[str, tuple[str, str]]:
        """Hub id and folder of the companions that the models share; none where ``config`` has other widths than theirs."""
        table = read_json(cls.data / "companions.json")
        if config is not None and any(
            getattr(config, key) != width for key, width in table["widths"].items()
        ):
            return {}
        return {name: (source, folder) for name, (source, folder) in table["components"].items()}

    @classmethod
    def profile(cls) -> dict[str, Any]:
        """What the models expect beyond their tensors, as an ``isoframe.json`` says it."""
        return read_json(cls.data / "profile.json")

    @classmethod
    def lora_aliases(cls) -> LoraAliases:
        """Names that trainers give to the transformer's layers, besides those of the checkpoint."""
        return LoraAliases(**read_json(cls.data / "lora_names.json"))

    @classmethod
    @abstractmethod
    def published(cls, name: str) -> PlannedModel | None:
        """The published model of that name, the family's own or an id on the Hub; None if it is not built in."""

    @classmethod
    @abstractmethod
    def default_order(cls, name: str) -> str | None:
        """The order that a checkpoint called ``name`` was trained for, where the name tells."""

    @classmethod
    @abstractmethod
    def prompt_template(cls) -> str:
        """The published text around a prompt, which replaces "{}"."""

    @abstractmethod
    def sizes(self, name: str, companions: Mapping[str, Mapping[str, Any]]) -> ModelSizes:
        """For the planner: companions as their ``config.json`` says; those that are absent are the published ones."""

    @abstractmethod
    def unit_specs(self) -> tuple[UnitSpec, ...]:
        """All units in execution order."""

    @abstractmethod
    def transformer_class(self) -> "type[Transformer]":
        """What holds the weights, prepares a job, packs a section and runs a step; imports torch."""
