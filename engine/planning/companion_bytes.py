"""Bytes and arithmetic of the phases around the denoising loop: encoders, preparation of a job, VAE."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..families.framepack.denoise_bytes import DenoiseShape, Precision
from ..families.framepack.shapes import Convolution, EncoderShape, VaeShape
from ..families.framepack.transformer_config import TransformerConfig

# The published temporal chunks: 5 latent frames every 3.
_CHUNK_LATENTS, _CHUNK_STRIDE = 5, 3
# And of a clip that is encoded, 16 frames after the first one.
_ENCODED_FRAMES = 17
# Tiles overlap by a quarter, as the published 256 px tiles every 192 px do.
_STRIDE_SHARE = 0.75


def encoder_activation_bytes(shape: EncoderShape, value_bytes: int) -> int:
    """Most that one layer holds, the scores of an unfused attention included."""
    tokens = shape.num_tokens
    return value_bytes * (18 * tokens * shape.width + 4 * shape.num_heads * tokens**2)


def prepare_activation_bytes(shape: DenoiseShape) -> int:
    """Most that the refiner holds, which refines the text for every step at once; and two modulation tables."""
    config, precision = shape.config, shape.precision
    dim, mlp = config.inner_dim, int(config.inner_dim * config.mlp_ratio)
    tokens = shape.num_steps * shape.sequence.text
    vectors = 12 * config.num_layers + 3 * config.num_single_layers + 2
    refiner = tokens * (5 * dim + 2 * mlp)
    vision = shape.sequence.vision * 7 * dim
    return precision.residual * (refiner + vision + 2 * shape.num_branches * shape.num_steps * vectors * dim)


def largest_once_layer_bytes(config: TransformerConfig, precision: Precision) -> int:
    """The largest layer that a job needs once: a dual-stream block's modulation, or the refiner's MLP."""
    dim, mlp = config.inner_dim, int(config.inner_dim * config.mlp_ratio)
    return precision.residual * max(6 * dim**2 + 6 * dim, mlp * dim + mlp)


def tile_stride(tile: int) -> int:
    """Pixels from one tile to the next."""
    return int(tile * _STRIDE_SHARE)


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeWork:
    """Decoding or encoding at one size.

    Attributes:
        vae: the VAE.
        size: height and width in pixels.
        tile: edge of the spatial tiles in pixels; None works on the whole picture.
        value_bytes: of a weight or activation.
    """

    vae: VaeShape
    size: tuple[int, int]
    tile: int | None
    value_bytes: int = 2

    @property
    def weight_bytes(self) -> int:
        return self.value_bytes * self.vae.num_params

    def decode_bytes(self, num_latents: int) -> int:
        """Most that decoding ``num_latents`` latent frames holds: one tile at its last upsampling, and the frames so far."""
        latents = min(num_latents, _CHUNK_LATENTS)
        frames = 4 * latents - 3
        height, width = self._tile_size()
        wide, deep = self.vae.channels[1], self.vae.channels[2]
        plane = height * width
        # Upsampled frames, their joint with the first one, its padded copy and the convolution's result.
        upsampled = wide * ((frames - 1) + 2 * frames) * plane
        padded = wide * (frames + 2) * (height + 2) * (width + 2)
        below = (2 * latents - 1) * plane // 4
        inputs = wide * (below + plane) + deep * below
        positions = latents * (height // 8) * (width // 8)
        tile = max(upsampled + padded + inputs, 2 * positions**2) + self.vae.latent_channels * positions
        return self.value_bytes * (tile + self._decoded_values(num_latents, frames))

    def _decoded_values(self, num_latents: int, frames: int) -> int:
        """Values of the chunks decoded before the last whole one, and of the tiles of that one."""
        picture = self.size[0] * self.size[1]
        chunks = max(-(-(num_latents - _CHUNK_LATENTS + 1) // _CHUNK_STRIDE), 1)
        tiles = sum(h * w for h in self._edges(0) for w in self._edges(1)) if self.tile else 0
        return 3 * frames * (chunks - 1) * picture + 3 * frames * tiles

    def decode_workspace_bytes(self, num_latents: int) -> int:
        """What cuDNN may ask for at the largest convolution: its input and result in another layout."""
        frames = 4 * min(num_latents, _CHUNK_LATENTS) - 3
        height, width = self._tile_size()
        channels = self.vae.channels[1]
        return (
            self.value_bytes
            * channels
            * ((frames + 2) * (height + 2) * (width + 2) + frames * height * width)
        )

    def encode_bytes(self, num_frames: int = 1) -> int:
        """Most that encoding an image or a clip holds: a residual block of the first level, or the middle's attention."""
        height, width = self._tile_size()
        channels, frames = self.vae.channels[0], min(num_frames, _ENCODED_FRAMES)
        block = 4 * channels * frames * height * width + channels * (frames + 2) * (height + 2) * (width + 2)
        positions = ((frames - 1) // 4 + 1) * height * width // 64
        # Causal: a mask, its sum with the scores, and their softmax where no kernel is fused.
        attention = 5 * positions**2 + 16 * self.vae.channels[3] * positions
        ends = (3 * num_frames + self.vae.latent_channels) * self.size[0] * self.size[1]
        return self.value_bytes * (max(block, attention) + ends)

    def encode_workspace_bytes(self, num_frames: int = 1) -> int:
        """As :meth:`decode_workspace_bytes`."""
        height, width = self._tile_size()
        channels, frames = self.vae.channels[0], min(num_frames, _ENCODED_FRAMES)
        values = (frames + 2) * (height + 2) * (width + 2) + frames * height * width
        return self.value_bytes * channels * values

    def decode_flops(self, num_latents: int) -> float:
        """Multiplications and additions of decoding ``num_latents`` frames in chunks and tiles."""
        return sum(
            self._tile_flops(latents, height, width)
            for latents in _chunks(num_latents)
            for height in self._edges(0)
            for width in self._edges(1)
        )

    def _tile_flops(self, latents: int, height: int, width: int) -> float:
        positions = latents * (height // 8) * (width // 8)
        attention = 4.0 * positions**2 * self.vae.channels[3]
        return attention + sum(_conv_flops(conv, latents, positions) for conv in self.vae.decoder())

    def _tile_size(self) -> tuple[int, int]:
        return self._edges(0)[0], self._edges(1)[0]

    def _edges(self, axis: int) -> list[int]:
        """Lengths of the tiles along an axis; both axes are tiled where one is longer than a tile."""
        length = self.size[axis]
        if self.tile is None or max(self.size) <= self.tile:
            return [length]
        return [min(self.tile, length - start) for start in range(0, length, tile_stride(self.tile))]


def _conv_flops(conv: Convolution, latents: int, positions: int) -> float:
    """Level 1 doubles height and width, levels 2 and 3 also the frames after the first."""
    frames = (latents, latents, 2 * latents - 1, 4 * latents - 3)[conv.level]
    taps = 2.0 * conv.kernel**3 * conv.in_channels * conv.out_channels
    pixels = (positions // latents) * 4.0**conv.level
    return taps * pixels * frames


def _chunks(num_latents: int) -> Iterator[int]:
    """Latent frames of each temporal chunk."""
    if num_latents < _CHUNK_LATENTS:
        return iter([num_latents])
    return (min(_CHUNK_LATENTS, num_latents - start) for start in range(0, num_latents, _CHUNK_STRIDE))
