"""The node that encodes a prompt and an image with the model's own encoders."""

from typing import Any

import torch
from torch import Tensor

from ...request.config import Request
from .load_node import EngineHandle
from .node import ENGINE, Input, Node, Output
from .tensors import VisionOutput, latent_scale, to_conditioning, to_latent

# Any scale but 1: then the negative prompt is encoded too.
_GUIDED = 2.0


def encode(
    engine: EngineHandle,
    image: Tensor,
    prompt: str,
    negative_prompt: str,
    width: int,
    height: int,
    seed: int,
) -> tuple[Any, Any, VisionOutput, dict[str, Any]]:
    """Prompts, image tokens and start latent."""
    model = engine.engine
    request = Request(
        image=(image[0].cpu() * 255).round().clamp(0, 255).to(torch.uint8).numpy(),
        prompt=prompt,
        negative_prompt=negative_prompt,
        size=(height, width) if height and width else None,
        cfg_scale=_GUIDED,
        seed=seed,
        # The length is the sampler's to say.
        seconds=1.0,
    )
    with engine.at_work():
        found = model.condition(request)
    assert found.negative is not None, "a negative prompt was asked for"
    return (
        to_conditioning(found.prompt),
        to_conditioning(found.negative),
        VisionOutput(found.image_embeds),
        to_latent(found.start_latent, latent_scale(model)),
    )


def _side(name: str) -> Input:
    return Input(
        name=name, kind="INT", default=0, min=0, max=4096, step=16,
        tooltip="Pixels, a multiple of 16; 0 takes the size of the model that is nearest to the image's shape.",
    )  # fmt: skip


ENCODE = Node(
    name="IsoframeEncode",
    title="Isoframe: Encode Prompt and Image",
    description="With the model's own encoders, one after the other inside the budget. ComfyUI's encoders (DualCLIPLoader "
    "of type hunyuan_video, sigclip, HunyuanVideo's VAE) may take its place.",
    inputs=(
        Input(name="engine", kind=ENGINE),
        Input(name="image", kind="IMAGE"),
        Input(name="prompt", kind="STRING", default="", multiline=True),
        Input(name="negative_prompt", kind="STRING", default="", multiline=True),
        _side("width"),
        _side("height"),
        Input(name="seed", kind="INT", default=31337, min=0, max=2**63 - 1),
    ),
    outputs=(
        Output("positive", "CONDITIONING"),
        Output("negative", "CONDITIONING"),
        Output("image_embeds", "CLIP_VISION_OUTPUT"),
        Output("start_latent", "LATENT"),
    ),
    run=encode,
)
