"""Sizes of a FramePack model and of its companions, which is all that a plan needs of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ...files import read_json
from ...model.precision import Precision
from ...request.config import SamplingConfig
from ...request.sections import largest_schedule, most_tail_frames
from ..family import EncoderShape, ModelSizes
from ..registry import PUBLISHED_NAME
from .step_sizes import DenoiseShape, packed_sequence
from .transformer_config import TransformerConfig
from .vae_sizes import VaeShape, VaeWork

# Hidden state -3 of LLaMA: its last two layers are not run.
UNUSED_LLAMA_LAYERS = 2
# Tokens of the published prompt template before the prompt, and the most of a prompt.
TEMPLATE_TOKENS, MAX_PROMPT_TOKENS = 95, 256

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShapes(ModelSizes):
    """A FramePack model.

    Attributes:
        name: for tables.
        transformer: its configuration.
        text_encoder: LLaMA, less the layers that are not run.
        text_encoder_2: CLIP.
        image_encoder: SigLIP, less its pooling head.
        vae: HunyuanVideo's VAE.
    """

    name: str
    transformer: TransformerConfig
    text_encoder: EncoderShape
    text_encoder_2: EncoderShape
    image_encoder: EncoderShape
    vae: VaeShape

    @classmethod
    def from_configs(
        cls, name: str, transformer: TransformerConfig, configs: Mapping[str, Mapping[str, Any]]
    ) -> "ModelShapes":
        """A transformer with companions as their ``config.json`` says; those that are absent are the published ones."""
        configs = {**_published_configs(), **configs}
        return cls(
            name=name,
            transformer=transformer,
            text_encoder=_llama(configs["text_encoder"]),
            text_encoder_2=_clip(configs["text_encoder_2"]),
            image_encoder=_siglip(configs["image_encoder"]),
            vae=_vae(configs["vae"]),
        )

    @property
    def latent_channels(self) -> int:
        return self.transformer.in_channels

    @property
    def vae_params(self) -> int:
        return self.vae.num_params

    @property
    def encoders(self) -> tuple[EncoderShape, ...]:
        return self.text_encoder, self.text_encoder_2, self.image_encoder

    def phases(
        self,
        sampling: SamplingConfig,
        size: tuple[int, int],
        precision: Precision,
        *,
        attention: str,
        num_text_tokens: int | None,
    ) -> Sequence[DenoiseShape]:
        schedule = largest_schedule(sampling)
        sequence = packed_sequence(
            self.transformer,
            size,
            schedule,
            self.image_encoder.num_tokens,
            MAX_PROMPT_TOKENS if num_text_tokens is None else num_text_tokens,
            most_tail_frames(sampling, schedule),
        )
        step = DenoiseShape(
            config=self.transformer,
            precision=precision,
            sequence=sequence,
            num_steps=sampling.num_steps,
            num_branches=1 if sampling.cfg_scale == 1.0 else 2,
            step_cache=sampling.step_cache,
            attention=attention,
        )
        return (step,)

    def codec_work(self, size: tuple[int, int], tile: int | None, value_bytes: int) -> VaeWork:
        return VaeWork(vae=self.vae, size=size, tile=tile, value_bytes=value_bytes)


@cache
def published_shapes() -> ModelShapes:
    """The published 13B model; nothing is downloaded."""
    config = TransformerConfig.from_dict(_published_configs()["transformer"], source=PUBLISHED_NAME)
    return ModelShapes.from_configs(PUBLISHED_NAME, config, {})


def _published_configs() -> dict[str, Any]:
    return read_json(DATA / f"{PUBLISHED_NAME}.json")


def _llama(config: Mapping[str, Any]) -> EncoderShape:
    width, mlp = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or width // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    return EncoderShape(
        reads="text",
        width=width,
        num_heads=config["num_attention_heads"],
        num_tokens=TEMPLATE_TOKENS + MAX_PROMPT_TOKENS,
        depth=config["num_hidden_layers"] - UNUSED_LLAMA_LAYERS,
        layer_params=2 * width * queries + 2 * width * keys + 3 * width * mlp + 2 * width,
        other_params=config["vocab_size"] * width,
        is_layerwise=True,
    )


def _clip(config: Mapping[str, Any]) -> EncoderShape:
    width = config["hidden_size"]
    table, positions = config["vocab_size"] * width, config["max_position_embeddings"] * width
    return EncoderShape(
        reads="text",
        width=width,
        num_heads=config["num_attention_heads"],
        num_tokens=config["max_position_embeddings"],
        depth=config["num_hidden_layers"],
        layer_params=_biased_layer(width, config["intermediate_size"]),
        other_params=table + positions + 2 * width,
    )


def _siglip(config: Mapping[str, Any]) -> EncoderShape:
    width, patch = config["hidden_size"], config["patch_size"]
    tokens = (config["image_size"] // patch) ** 2
    return EncoderShape(
        reads="image",
        width=width,
        num_heads=config["num_attention_heads"],
        num_tokens=tokens,
        depth=config["num_hidden_layers"],
        layer_params=_biased_layer(width, config["intermediate_size"]),
        other_params=3 * patch**2 * width + width + tokens * width + 2 * width,
    )


def _biased_layer(width: int, mlp: int) -> int:
    """Parameters of a pre-norm layer whose linear layers and norms have biases."""
    return 4 * (width**2 + width) + 2 * width * mlp + mlp + width + 4 * width


def _vae(config: Mapping[str, Any]) -> VaeShape:
    return VaeShape(
        latent_channels=config["latent_channels"],
        channels=tuple(config["block_out_channels"]),
        layers_per_block=config["layers_per_block"],
    )
