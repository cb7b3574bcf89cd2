"""What the transformer is told about a request, as tensors: its encoded prompts beside its images."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from ..errors import CheckpointError
from ..media.images import image_to_tensor
from ..model.conditioning import Anchor, Conditioning, PromptEmbeds
from .inputs import JobInputs
from .loaded_model import LoadedModel


def encode_images(
    inputs: JobInputs, model: LoadedModel, prompts: Sequence[PromptEmbeds], negative: PromptEmbeds | None
) -> Conditioning:
    """Encode all images of a job.

    Without a start image the embeddings are those of a black one, and the start latent is zero. Guides are on the CPU:
    only one of them is at work at a time.

    Args:
        inputs: have the images.
        model: its VAE and image encoder are used.
        prompts: of every section, in generation order.
        negative: with true guidance.

    Raises:
        CheckpointError: the VAE gives NaN or infinity.
    """
    images, request, vae = inputs.images, inputs.request, model.vae

    def encode(pixels: Tensor) -> Tensor:
        latents = vae.encode(pixels, posterior=request.posterior, seed=request.seed)
        if not latents.isfinite().all():
            raise CheckpointError(
                f"the VAE of {model.components.name} encodes the image to NaN or infinity; check its files"
            )
        return latents.cpu()

    height, width = images.size
    start, end = (
        None if image is None else encode(image_to_tensor(image)) for image in (images.start, images.end)
    )
    guides = [encode(image_to_tensor(image)) for image in images.guides]
    embeds = model.encoders.encode_images([images.start or Image.new("RGB", (width, height)), *images.guides])
    if start is None:
        start = torch.zeros(1, vae.num_channels, 1, height // 8, width // 8)
    given = None
    if images.video is not None:
        # At most as many frames as a history holds, next to what is generated.
        pixels, num_leading = images.video.clip(images.size, is_tail=request.direction == "forward")
        given = encode(pixels)[:, :, num_leading:].contiguous()
    return replace(
        Conditioning.of(prompts[0], negative, image_embeds=embeds[0], start_latent=start),
        section_prompts=tuple(prompts),
        end_latent=None if end is None else end * request.end_image_strength,
        given_latents=given,
        guides=tuple(
            Anchor(latent=latent, image_embeds=guide.cpu())
            for latent, guide in zip(guides, embeds[1:], strict=True)
        ),
    )
