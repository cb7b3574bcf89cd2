"""Models and inputs of any shape without a download: speed does not depend on the values."""

import math
import zlib
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from ...engine.errors import ConfigError
from ...engine.events import EventHandler
from ...engine.families.family import PlannedModel
from ...engine.families.framepack.transformer import PackedTransformer
from ...engine.families.framepack.transformer_config import TransformerConfig
from ...engine.model.attention import SelfAttention
from ...engine.model.attention_backends import AttentionShape
from ...engine.model.attention_choice import AttentionChoice
from ...engine.model.conditioning import Conditioning
from ...engine.request.config import EngineConfig, SamplingConfig
from ...engine.sampling.denoiser import Denoiser, LatentSection
from ...quant import DENSE_DTYPES, WeightFormat, make_format

# Tokens of a short prompt.
NUM_TEXT_TOKENS = 32


def draw_weight(name: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Draw a weight that depends on its name alone: matrices that keep the deviation of unit inputs, small vectors."""
    generator = torch.Generator(device).manual_seed(zlib.crc32(name.encode()))
    deviation = 0.02 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
    return torch.randn(shape, generator=generator, device=device).mul_(deviation)


def allocate_transformer(
    config: TransformerConfig, weight_format: WeightFormat, device: torch.device
) -> PackedTransformer:
    """A transformer without values; its head is in fp32 in bf16, as in the engine and the published program."""
    return PackedTransformer(
        config,
        weight_format.dtype,
        device,
        weight_format=weight_format,
        has_fp32_head=weight_format.dtype == torch.bfloat16,
    )


def fill_randomly(transformer: PackedTransformer, source: torch.device | None = None) -> PackedTransformer:
    """Draw every weight on ``source`` (None: where it goes; every kind of device draws its own); the transformer."""
    for name, destination in transformer.destinations.items():
        weight = draw_weight(name, destination.shape, source or transformer.device)
        destination.write(weight.to(transformer.device))
    return transformer


def draw_conditioning(
    config: TransformerConfig, *, size: tuple[int, int], num_text_tokens: int, num_image_tokens: int
) -> Conditioning:
    """Draw embeddings and a start latent on the CPU, equal on every call; ``size`` is (height, width) in pixels."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return Conditioning(
        text_embeds=draw(1, num_text_tokens, config.text_embed_dim),
        text_mask=torch.ones(1, num_text_tokens, dtype=torch.bool),
        pooled_embeds=draw(1, config.pooled_projection_dim),
        image_embeds=draw(1, num_image_tokens, config.image_proj_dim),
        start_latent=draw(1, config.in_channels, 1, size[0] // 8, size[1] // 8),
    )


def model_conditioning(known: PlannedModel, size: tuple[int, int]) -> Conditioning:
    """Random embeddings of a short prompt and of an image, as ``known`` has them; ``size`` is in pixels."""
    return draw_conditioning(
        known.shapes.transformer,
        size=size,
        num_text_tokens=NUM_TEXT_TOKENS,
        num_image_tokens=known.shapes.num_image_tokens,
    )


def chosen_attention(
    config: EngineConfig, precision: str, device: torch.device, shape: AttentionShape
) -> SelfAttention:
    """The attention that an engine with ``config`` takes for a model in ``precision`` and ``shape``."""
    choice = AttentionChoice(
        name=config.attention, precision=precision, device=device, cache_dir=config.cache_path()
    )
    return choice.make(shape)


class RandomModel:
    """A transformer with random weights that samples latents, as an engine does."""

    def __init__(self, config: TransformerConfig, engine_config: EngineConfig, device: torch.device) -> None:
        """Allocate and fill.

        Args:
            config: shapes.
            engine_config: precision, compute dtype, attention and cache folder.
            device: where it computes; all weights are there.

        Raises:
            ConfigError: a budget is given, which only weights on the disk can be streamed inside of.
        """
        if engine_config.vram is not None or engine_config.ram is not None:
            raise ConfigError(
                "a budget (--vram, --ram) needs a model on the disk; give --weights model and --model ..."
            )
        auto = "fp32" if device.type == "cpu" else "bf16"
        compute_dtype = auto if engine_config.compute_dtype == "auto" else engine_config.compute_dtype
        weight_format = make_format(engine_config.precision or auto, DENSE_DTYPES[compute_dtype])
        self.transformer = fill_randomly(allocate_transformer(config, weight_format, device))
        choose = partial(chosen_attention, engine_config, weight_format.name, device)
        self._denoiser = Denoiser(self.transformer, choose)

    def sample(
        self, conditioning: Conditioning, sampling: SamplingConfig, *, on_event: EventHandler | None = None
    ) -> Iterator[LatentSection]:
        """Yield every section in generation order.

        Raises:
            ConfigError: the step cache decides by values, which are random here.
        """
        if sampling.step_cache != "none":
            raise ConfigError(
                f"step cache {sampling.step_cache!r} skips steps by what a model computes, and these weights are "
                "random; give a model (--weights model --model ...)"
            )
        return self._denoiser.sample(conditioning, sampling, on_event)
