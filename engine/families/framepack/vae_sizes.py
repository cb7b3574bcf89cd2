"""HunyuanVideo's VAE: its parameters, and the bytes and arithmetic of decoding and encoding."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..family import CodecWork, tile_stride

# The published temporal chunks: 5 latent frames every 3.
_CHUNK_LATENTS, _CHUNK_STRIDE = 5, 3
# And of a clip that is encoded, 16 frames after the first one.
_ENCODED_FRAMES = 17


@dataclass(frozen=True, slots=True)
class Convolution:
    """A causal convolution of the VAE.

    Attributes:
        in_channels: channels of its input.
        out_channels: channels of its output.
        kernel: edge of its kernel.
        level: upsamplings between the latents and its output.
        is_normed: whether a group norm comes before it.
    """

    in_channels: int
    out_channels: int
    kernel: int
    level: int
    is_normed: bool = False

    @property
    def num_params(self) -> int:
        """Parameters of the convolution and of the norm before it."""
        norm = 2 * self.in_channels * self.is_normed
        return norm + self.kernel**3 * self.in_channels * self.out_channels + self.out_channels


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
        """Parameters of encoder and decoder, norms and attention included."""
        deepest = self.channels[3]
        # Norm, q, k, v and output of the middle's attention.
        attention = 2 * deepest + 4 * (deepest**2 + deepest)
        convolutions = sum(conv.num_params for conv in (*self.encoder(), *self.decoder()))
        points = sum(n**2 + n for n in (2 * self.latent_channels, self.latent_channels))
        return convolutions + 2 * attention + points

    def decoder(self) -> Iterator[Convolution]:
        """Convolutions from latents to pixels, in order."""
        deepest = self.channels[3]
        yield Convolution(self.latent_channels, deepest, 3, 0)
        for _ in range(2):
            yield from _residual_block(deepest, deepest, 0)
        width = deepest
        for level, channels in enumerate(reversed(self.channels)):
            for _ in range(self.layers_per_block + 1):
                yield from _residual_block(width, channels, level)
                width = channels
            if level < 3:
                yield Convolution(channels, channels, 3, level + 1)
        yield Convolution(width, 3, 3, 3, is_normed=True)

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
        for _ in range(2):
            yield from _residual_block(width, width, 0)
        yield Convolution(width, 2 * self.latent_channels, 3, 0, is_normed=True)


def _residual_block(width: int, channels: int, level: int) -> Iterator[Convolution]:
    yield Convolution(width, channels, 3, level, is_normed=True)
    yield Convolution(channels, channels, 3, level, is_normed=True)
    if width != channels:
        yield Convolution(width, channels, 1, level)


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeWork(CodecWork):
    """Decoding or encoding with HunyuanVideo's VAE.

    Attributes:
        vae: the VAE.
    """

    vae: VaeShape

    def decode_bytes(self, num_latents: int) -> int:
        """One tile at its last upsampling, and the frames so far."""
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
        return self._workspace_bytes(self.vae.channels[1], 4 * min(num_latents, _CHUNK_LATENTS) - 3)

    def encode_bytes(self, num_frames: int = 1) -> int:
        """A residual block of the first level, or the middle's attention."""
        height, width = self._tile_size()
        channels, frames = self.vae.channels[0], min(num_frames, _ENCODED_FRAMES)
        block = 4 * channels * frames * height * width + channels * (frames + 2) * (height + 2) * (width + 2)
        positions = ((frames - 1) // 4 + 1) * height * width // 64
        # Causal: a mask, its sum with the scores, and their softmax where no kernel is fused.
        attention = 5 * positions**2 + 16 * self.vae.channels[3] * positions
        ends = (3 * num_frames + self.vae.latent_channels) * self.size[0] * self.size[1]
        return self.value_bytes * (max(block, attention) + ends)

    def encode_workspace_bytes(self, num_frames: int = 1) -> int:
        return self._workspace_bytes(self.vae.channels[0], min(num_frames, _ENCODED_FRAMES))

    def _workspace_bytes(self, channels: int, frames: int) -> int:
        """A convolution's padded input and its result."""
        height, width = self._tile_size()
        values = (frames + 2) * (height + 2) * (width + 2) + frames * height * width
        return self.value_bytes * channels * values

    def decode_flops(self, num_latents: int) -> float:
        """Multiplications and additions of decoding, counted chunk by chunk and tile by tile."""
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
    """Multiplications and additions of one convolution.

    Level 1 doubles height and width, levels 2 and 3 also the frames after the first.
    """
    frames = (latents, latents, 2 * latents - 1, 4 * latents - 3)[conv.level]
    taps = 2.0 * conv.kernel**3 * conv.in_channels * conv.out_channels
    pixels = (positions // latents) * 4.0**conv.level
    return taps * pixels * frames


def _chunks(num_latents: int) -> Iterator[int]:
    """Latent frames of each temporal chunk."""
    if num_latents < _CHUNK_LATENTS:
        return iter([num_latents])
    return (min(_CHUNK_LATENTS, num_latents - start) for start in range(0, num_latents, _CHUNK_STRIDE))
