"""What the transformer is told about a request's images, as tensors."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from .config import Request
from .encoders import Encoders
from .errors import CheckpointError
from .images import image_to_tensor
from .start_images import RequestImages
from .vae import VideoVAE


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisualConditioning:
    """Fields of :class:`~isoframe.engine.Conditioning` that come from images.

    Attributes:
        image_embeds: of the start image; of a black one where there is none.
        start_latent: of the start image; zero where there is none.
        end_latent: of the end image, times its strength.
        given_latents: of the video that is extended.
    """

    image_embeds: Tensor
    start_latent: Tensor
    end_latent: Tensor | None
    given_latents: Tensor | None


def encode_images(
    images: RequestImages, request: Request, encoders: Encoders, vae: VideoVAE, model: str
) -> VisualConditioning:
    """Encode all images of a request.

    Raises:
        CheckpointError: the VAE of ``model`` gives NaN or infinity.
    """

    def encode(image: "Image.Image | None") -> Tensor | None:
        if image is None:
            return None
        pixels = image_to_tensor(image)
        return _checked(vae.encode_image(pixels, posterior=request.posterior, seed=request.seed), model)

    height, width = images.size
    start, end = encode(images.start), encode(images.end)
    if start is None:
        start = torch.zeros(1, vae.num_channels, 1, height // 8, width // 8)
    return VisualConditioning(
        image_embeds=encoders.encode_image(images.start or Image.new("RGB", (width, height))),
        start_latent=start,
        end_latent=None if end is None else end * request.end_image_strength,
        given_latents=_encode_video(images, request, vae, model),
    )


def _encode_video(images: RequestImages, request: Request, vae: VideoVAE, model: str) -> Tensor | None:
    """Latents of the end of the video that is next to what is generated, at most as many as a history holds."""
    if images.video is None:
        return None
    pixels, num_leading = images.video.clip(images.size, is_tail=request.direction == "forward")
    latents = vae.encode_clip(pixels, posterior=request.posterior, seed=request.seed)
    return _checked(latents, model)[:, :, num_leading:].contiguous()


def _checked(latents: Tensor, model: str) -> Tensor:
    if not latents.isfinite().all():
        raise CheckpointError(f"the VAE of {model} encodes the image to NaN or infinity; check its files")
    return latents.cpu()
