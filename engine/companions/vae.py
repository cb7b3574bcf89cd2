"""The video VAE: an image in, latents to frames out, section by section."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, InputError
from ..families.family import tile_stride
from ..request.config import ORDERS, POSTERIORS, check_choice
from .components import ComponentRef
from .pretrained import LOADING, load_pretrained


class VideoVAE:
    """A causal VAE in diffusers: T latent frames of 1/8 the size stand for 4T - 3 pixel frames.

    More than 4 latent frames are decoded in the published temporal chunks: 5 latents every 3, the first pixel
    frame of all but the first chunk dropped, 4 frames cross-faded. They are part of the result, not an option.

    Attributes:
        scaling_factor: latents here are the VAE's times this.
        num_channels: latent channels.
    """

    def __init__(self, model: Any) -> None:
        self.model: Any = model.eval().requires_grad_(False)
        self._device: torch.device = model.device
        self.scaling_factor = float(model.config.scaling_factor)
        self.num_channels = int(model.config.latent_channels)
        _check_chunks(model)
        if model.device.type == "cpu" and torch.backends.mkldnn.is_available():
            _convolve_with_onednn(model)

    @classmethod
    def load(
        cls,
        ref: ComponentRef,
        vae_class: str,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        local_files_only: bool = False,
    ) -> Self:
        """Load the class ``vae_class`` of diffusers from a Hub id or a folder."""
        folder = ref.fetch(local_files_only=local_files_only)
        import diffusers

        model_class = getattr(diffusers, vae_class)
        with LOADING:
            return cls(
                load_pretrained(model_class, folder, torch.device(device), is_exact=True, torch_dtype=dtype)
            )

    def use_tiles(self, tile: int | None) -> None:
        """Work in square tiles of ``tile`` px that overlap by a quarter; None in whole pictures.

        Tiles take less memory and give slightly different pixels and latents; the published ones have 256 px.
        """
        if tile is None:
            self.model.disable_tiling()
            return
        stride = tile_stride(tile)
        self.model.enable_tiling(
            tile_sample_min_height=tile,
            tile_sample_min_width=tile,
            tile_sample_stride_height=stride,
            tile_sample_stride_width=stride,
        )

    @torch.no_grad()
    def encode(self, pixels: Tensor, *, posterior: str, seed: int) -> Tensor:
        """Encode an image or a clip [1, 3, 4k + 1, H, W] in [-1, 1] as scaled fp32 latents [1, 16, k + 1, H/8, W/8].

        More than 16 frames are encoded in the published temporal chunks.

        Args:
            pixels: H and W are multiples of 8.
            posterior: "sample" draws from the posterior with a generator of its own; "mode" takes its mean.
            seed: seed of that generator.
        """
        check_choice("posterior", posterior, POSTERIORS)
        shape = tuple(pixels.shape)
        if len(shape) != 5 or shape[1] != 3 or shape[2] % 4 != 1 or any(n % 8 for n in shape[3:]):
            raise InputError(f"pixels must be [1, 3, 4k + 1, H, W] with H and W multiples of 8, got {shape}")
        with self._on_device():
            distribution = self.model.encode(pixels.to(self._device, self.model.dtype)).latent_dist
        if posterior == "mode":
            latents = distribution.mode()
        else:
            latents = distribution.sample(torch.Generator("cpu").manual_seed(seed))
        scaled: Tensor = latents.float() * self.scaling_factor
        return scaled

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode scaled latents [1, 16, T, h, w] to frames [1, 3, 4T - 3, 8h, 8w] in about [-1, 1].

        The result has the VAE's dtype and device.
        """
        latents = (latents.to(self._device) / self.scaling_factor).to(self.model.dtype)
        with self._on_device():
            frames: Tensor = self.model.decode(latents).sample
        return frames

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        """The weights are on a CUDA device only while they compute: between two sections the transformer has it."""
        self.model.to(self._device)
        try:
            yield
        finally:
            if self._device.type == "cuda":
                self.model.to("cpu")

    def content_hash(self) -> str:
        """SHA-256 over names, dtypes, shapes and bytes of all tensors."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedFrames:
    """A stretch of the video.

    Attributes:
        frames: uint8 [T, H, W, 3] on the CPU, in video order.
        first_frame: place of the first of them in the video.
    """

    frames: Tensor
    first_frame: int


class SectionDecoder:
    """Joins the decoded sections as the published program does, in bounded memory.

    Every section is decoded together with the one before it (in generation order), 2w latents, and cross-faded
    linearly with the video so far over 4w - 3 frames. So only the 4w - 3 frames at the open edge can change with
    the next section: the first ones in the inverted order, the last ones in the forward order. All others are
    final and leave as uint8. The last section releases everything. The start latent is decoded with the section
    beside it: the last one in the inverted order, the first one in the forward order.

    Between two pushes the decoder holds w latents (and the start latent) and 4w - 3 frames in the VAE's dtype.

    Args:
        vae: decodes.
        order: "inverted" or "forward".
        window: latent frames per section, w.
        num_sections: sections of the job.
        start_latent: [1, 16, 1, h, w], scaled; None where the video has no start image: its first latent then decodes to
            one frame in place of 4.
        given: latents [1, 16, T, h, w] of frames that are there already, before the first section in the forward order,
            after the last in the inverted one. They are decoded with the first section and thrown away.
        num_leading: frames of the video before those that the sections stand for, 4 for each of their latents: those of a
            video that goes on and the start image; -3 where there is neither, as the first latent is then one frame.
    """

    def __init__(
        self,
        vae: VideoVAE,
        *,
        order: str,
        window: int,
        num_sections: int,
        start_latent: Tensor | None,
        given: Tensor | None = None,
        num_leading: int = 1,
    ) -> None:
        check_choice("order", order, ORDERS)
        self._lead = num_leading
        self.num_frames = 4 * window * num_sections + self._lead
        self._vae = vae
        self._is_inverted = order == "inverted"
        self._window = window
        self._num_sections = num_sections
        self._start_latent = start_latent
        self._given = None
        if given is not None:
            self._given = given[:, :, :window] if self._is_inverted else given[:, :, -window:]
        self._num_pushed = 0
        self._previous = self._given
        self._edge: Tensor | None = None
        self._edge_start = 0

    def push(self, latents: Tensor) -> DecodedFrames:
        """Decode the next section [1, 16, w, h, w] in generation order; the frames that became final with it."""
        if self._num_pushed == self._num_sections:
            raise ValueError(f"the job has {self._num_sections} sections, all of them are decoded")
        if latents.shape[2] != self._window:
            raise ValueError(f"latents must have {self._window} frames, got {tuple(latents.shape)}")
        frames = self._append(self._decode(latents))
        self._previous = latents
        self._num_pushed += 1
        return self._release(frames)

    def restart(self, num_pushed: int, read: Callable[[int], Tensor]) -> None:
        """Stand where ``num_pushed`` (at least 1) sections leave a decoder, by decoding only the last one again.

        The open edge is of the last section alone: what was blended with the one before it is final.

        Args:
            num_pushed: sections that were decoded.
            read: gives the latents of one of them, by its index in generation order.
        """
        latents = read(num_pushed - 1)
        self._num_pushed, self._previous = (
            num_pushed - 1,
            read(num_pushed - 2) if num_pushed > 1 else self._given,
        )
        frames = self._decode(latents)
        self._num_pushed, self._previous = num_pushed, latents
        self._release(frames)

    def provisional(self) -> DecodedFrames | None:
        """The frames at the open edge, which the next section changes; None before the first push."""
        if self._edge is None:
            return None
        return DecodedFrames(frames=to_uint8(self._edge), first_frame=self._edge_start)

    def _decode(self, latents: Tensor) -> Tensor:
        """Frames [3, T, H, W] of the section and the one before it; given frames are left out."""
        frames = self._vae.decode(self._with_neighbours(latents))[0].cpu()
        if self._num_pushed > 0 or self._given is None:
            return frames
        num_made = frames.shape[1] - 4 * self._given.shape[2]
        return frames[:, :num_made] if self._is_inverted else frames[:, -4 * self._window :]

    def _with_neighbours(self, latents: Tensor) -> Tensor:
        """The section, the one before it, and the start latent if it lies beside them, in video order."""
        is_beside_start = self._num_pushed == (self._num_sections - 1 if self._is_inverted else 0)
        is_beside_start = is_beside_start and (self._is_inverted or self._given is None)
        parts = [self._start_latent] if is_beside_start and self._start_latent is not None else []
        parts += [latents] if self._previous is None else self._ordered(latents, self._previous)
        return torch.cat([part.to(latents.device, torch.float32) for part in parts], dim=2)

    def _append(self, frames: Tensor) -> Tensor:
        """Cross-fade [3, T, H, W] with the open edge of the video, in place."""
        if self._edge is None:
            return frames
        overlap = self._edge.shape[1]
        shared = frames[:, -overlap:] if self._is_inverted else frames[:, :overlap]
        before, after = self._ordered(shared, self._edge)
        # Frame by frame: the cross-fade of all at once would hold three more copies of the overlap.
        for index, weight in enumerate(torch.linspace(1, 0, overlap, dtype=frames.dtype)):
            shared[:, index] = before[:, index] * weight + after[:, index] * (1 - weight)
        return frames

    def _release(self, frames: Tensor) -> DecodedFrames:
        """Split off the open edge; the rest is final."""
        num_open = 0 if self._num_pushed == self._num_sections else 4 * self._window - 3
        num_final = frames.shape[1] - num_open
        if self._is_inverted:
            self._edge, final = frames[:, :num_open].clone(), frames[:, num_open:]
            self._edge_start = 4 * self._window * (self._num_sections - self._num_pushed)
            self._edge_start += 3 + self._lead if num_open else 0
            final_start = self._edge_start + num_open
        else:
            final, self._edge = frames[:, :num_final], frames[:, num_final:].clone()
            self._edge_start = 4 * self._window * self._num_pushed + self._lead - num_open
            final_start = self._edge_start - num_final
        return DecodedFrames(frames=to_uint8(final), first_frame=final_start)

    def _ordered(self, new: Tensor, old: Tensor) -> list[Tensor]:
        """In video order: the inverted order adds in front, the forward order at the end."""
        return [new, old] if self._is_inverted else [old, new]


def to_uint8(frames: Tensor) -> Tensor:
    """[3, T, H, W] in about [-1, 1] to uint8 [T, H, W, 3], truncated as published."""
    channels, num_frames, height, width = frames.shape
    pixels = torch.empty(num_frames, height, width, channels, dtype=torch.uint8)
    for index in range(num_frames):
        pixels[index] = (frames[:, index].float().clamp(-1, 1) * 127.5 + 127.5).permute(1, 2, 0)
    return pixels


def _check_chunks(model: Any) -> None:
    """Refuse a VAE that would decode in other temporal chunks than the published ones."""
    chunks = (
        model.use_framewise_decoding,
        model.tile_sample_min_num_frames,
        model.tile_sample_stride_num_frames,
    )
    if chunks != (True, 16, 12):
        raise CheckpointError(
            f"the VAE must decode 16 frames every 12 (framewise), got {chunks}; load it unchanged from its folder"
        )


def _convolve_with_onednn(model: nn.Module) -> None:
    """Have every 3-D convolution use oneDNN.

    PyTorch leaves it for a plain loop when batch * channels * frames * rows is at most 20480, which is the case in
    most layers of a small VAE: 10 times slower there.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv3d) and module.padding_mode == "zeros" and module.padding != "same":
            module.forward = functools.partial(_onednn_conv3d, module)  # type: ignore[method-assign]


def _onednn_conv3d(layer: nn.Conv3d, x: Tensor) -> Tensor:
    if x.dtype != torch.float32:
        return nn.Conv3d.forward(layer, x)
    padding = cast(tuple[int, ...], layer.padding)
    return torch.mkldnn_convolution(
        x, layer.weight, layer.bias, padding, layer.stride, layer.dilation, layer.groups
    )
