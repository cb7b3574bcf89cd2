"""What the transformer is told about a request's images, as tensors."""

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from ..companions.encoders import Encoders
from ..companions.vae import VideoVAE
from ..errors import CheckpointError
from ..media.given import RequestImages
from ..media.images import image_to_tensor
from ..model.conditioning import Anchor
from ..request.config import Request


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VisualConditioning:
    """Fields of :class:`~isoframe.engine.Conditioning` that come from images.

    Attributes:
        image_embeds: of the start image; of a black one where there is none.
        start_latent: of the start image; zero where there is none.
        end_latent: of the end image, times its strength.
        given_latents: of the video that is extended.
        guides: of the guide images, on the CPU: only one of them is at work at a time.
    """

    image_embeds: Tensor
    start_latent: Tensor
    end_latent: Tensor | None
    given_latents: Tensor | None
    guides: tuple[Anchor, ...] = ()


def encode_images(
    images: RequestImages, request: Request, encoders: Encoders, vae: VideoVAE, model: str
) -> VisualConditioning:
    """Encode all images of a request.

    Raises:
        CheckpointError: the VAE of ``model`` gives NaN or infinity.
    """

    def encode(image: Image.Image) -> Tensor:
        pixels = image_to_tensor(image)
        return _checked(vae.encode_image(pixels, posterior=request.posterior, seed=request.seed), model)

    height, width = images.size
    start, end = (None if image is None else encode(image) for image in (images.start, images.end))
    latents = [encode(image) for image in images.guides]
    embeds = encoders.encode_images([images.start or Image.new("RGB", (width, height)), *images.guides])
    if start is None:
        start = torch.zeros(1, vae.num_channels, 1, height // 8, width // 8)
    return VisualConditioning(
        image_embeds=embeds[0],
        start_latent=start,
        end_latent=None if end is None else end * request.end_image_strength,
        given_latents=_encode_video(images, request, vae, model),
        guides=tuple(
            Anchor(latent=latent, image_embeds=guide.cpu())
            for latent, guide in zip(latents, embeds[1:], strict=True)
        ),
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
