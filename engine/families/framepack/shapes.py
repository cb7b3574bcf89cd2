"""Sizes of a model and of its companions, which is all that a plan needs of them."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .transformer_config import TransformerConfig

# Hidden state -3 of LLaMA: its last two layers are not run.
UNUSED_LLAMA_LAYERS = 2
# Tokens of the published prompt template before the prompt, and the most of a prompt.
TEMPLATE_TOKENS, MAX_PROMPT_TOKENS = 95, 256

PUBLISHED_NAME = "framepack-13b"
_PUBLISHED = Path(__file__).parents[2] / "data" / "framepack-13b.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderShape:
    """An encoder of prompts or images.

    Attributes:
        width: channels of a token.
        num_heads: heads of the attention.
        num_tokens: most tokens of one input.
        num_layers: layers that are run.
        layer_params: parameters of one of them.
        other_params: embeddings and outer norms that are used.
        table_params: the part of ``other_params`` that is a table of token embeddings.
    """

    width: int
    num_heads: int
    num_tokens: int
    num_layers: int
    layer_params: int
    other_params: int
    table_params: int

    @property
    def num_params(self) -> int:
        return self.num_layers * self.layer_params + self.other_params


@dataclass(frozen=True, slots=True)
class Convolution:
    """A causal convolution of the VAE; ``level`` counts the upsamplings between the latents and its output."""

    in_channels: int
    out_channels: int
    kernel: int
    level: int

    @property
    def num_params(self) -> int:
        return self.kernel**3 * self.in_channels * self.out_channels + self.out_channels


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeShape:
    """HunyuanVideo's VAE.

    Attributes:
        latent_channels: channels of the latents.
        channels: of the four levels, pixels first.
        layers_per_block: residual blocks of an encoder level; the decoder has one more.
    """

    latent_channels: int
    channels: tuple[int, int, int, int]
    layers_per_block: int

    @property
    def num_params(self) -> int:
        """Both halves, norms and attention included."""
        deepest = self.channels[3]
        # Norm, q, k, v and output of the middle's attention.
        attention = 2 * deepest + 4 * (deepest**2 + deepest)
        norms = sum(2 * channels for channels in self._normed("encoder") + self._normed("decoder"))
        convolutions = sum(conv.num_params for conv in (*self.encoder(), *self.decoder()))
        points = sum(n**2 + n for n in (2 * self.latent_channels, self.latent_channels))
        return convolutions + norms + 2 * attention + points

    def decoder(self) -> Iterator[Convolution]:
        """Convolutions from latents to pixels, in order."""
        deepest = self.channels[3]
        yield Convolution(self.latent_channels, deepest, 3, 0)
        for _ in range(4):
            yield Convolution(deepest, deepest, 3, 0)
        width = deepest
        for level, channels in enumerate(reversed(self.channels)):
            for _ in range(self.layers_per_block + 1):
                yield from _residual_block(width, channels, level)
                width = channels
            if level < 3:
                yield Convolution(channels, channels, 3, level + 1)
        yield Convolution(width, 3, 3, 3)

    def encoder(self) -> Iterator[Convolution]:
        """Convolutions from pixels to latents, in order."""
        width = self.channels[0]
        yield Convolution(3, width, 3, 3)
        for depth, channels in enumerate(self.channels):
            for _ in range(self.layers_per_block):
                yield from _residual_block(width, channels, 3 - depth)
                width = channels
            if depth < 3:
                yield Convolution(channels, channels, 3, 2 - depth)
        for _ in range(4):
            yield Convolution(width, width, 3, 0)
        yield Convolution(width, 2 * self.latent_channels, 3, 0)

    def _normed(self, half: str) -> list[int]:
        """Channels of every group norm of one half, the attention's left out."""
        blocks = self.layers_per_block + (half == "decoder")
        order = self.channels if half == "encoder" else self.channels[::-1]
        normed, width = [self.channels[3]] * 4, self.channels[0] if half == "encoder" else self.channels[3]
        for channels in order:
            for _ in range(blocks):
                normed += [width, channels]
                width = channels
        return [*normed, width]


def _residual_block(width: int, channels: int, level: int) -> Iterator[Convolution]:
    yield Convolution(width, channels, 3, level)
    yield Convolution(channels, channels, 3, level)
    if width != channels:
        yield Convolution(width, channels, 1, level)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShapes:
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


@cache
def published_shapes() -> ModelShapes:
    """The published 13B model; nothing is downloaded."""
    config = TransformerConfig.from_dict(_published_configs()["transformer"], source=PUBLISHED_NAME)
    return ModelShapes.from_configs(PUBLISHED_NAME, config, {})


def _published_configs() -> dict[str, dict[str, Any]]:
    configs: dict[str, dict[str, Any]] = json.loads(_PUBLISHED.read_text(encoding="utf-8"))
    return configs


def _llama(config: Mapping[str, Any]) -> EncoderShape:
    width, mlp = config["hidden_size"], config["intermediate_size"]
    head_dim = config.get("head_dim") or width // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    table = config["vocab_size"] * width
    return EncoderShape(
        width=width,
        num_heads=config["num_attention_heads"],
        num_tokens=TEMPLATE_TOKENS + MAX_PROMPT_TOKENS,
        num_layers=config["num_hidden_layers"] - UNUSED_LLAMA_LAYERS,
        layer_params=2 * width * queries + 2 * width * keys + 3 * width * mlp + 2 * width,
        other_params=table,
        table_params=table,
    )


def _clip(config: Mapping[str, Any]) -> EncoderShape:
    width = config["hidden_size"]
    table, positions = config["vocab_size"] * width, config["max_position_embeddings"] * width
    return EncoderShape(
        width=width,
        num_heads=config["num_attention_heads"],
        num_tokens=config["max_position_embeddings"],
        num_layers=config["num_hidden_layers"],
        layer_params=_biased_layer(width, config["intermediate_size"]),
        other_params=table + positions + 2 * width,
        table_params=table,
    )


def _siglip(config: Mapping[str, Any]) -> EncoderShape:
    width, patch = config["hidden_size"], config["patch_size"]
    tokens = (config["image_size"] // patch) ** 2
    return EncoderShape(
        width=width,
        num_heads=config["num_attention_heads"],
        num_tokens=tokens,
        num_layers=config["num_hidden_layers"],
        layer_params=_biased_layer(width, config["intermediate_size"]),
        other_params=3 * patch**2 * width + width + tokens * width + 2 * width,
        table_params=0,
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
