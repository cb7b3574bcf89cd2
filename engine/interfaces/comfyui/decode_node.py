"""The node that decodes latents section by section."""

from typing import Any

import torch
from torch import Tensor

from . import host
from .load_node import EngineHandle
from .node import ENGINE, Input, Node, Output
from .tensors import from_latent, latent_scale, sections_of


def decode(engine: EngineHandle, samples: dict[str, Any]) -> tuple[Tensor]:
    """Frames [T, H, W, 3] fp32 from 0 to 1; two sections at a time are on the device."""
    model = engine.engine
    order, window = sections_of(samples)
    latents = from_latent(samples, latent_scale(model)).cpu()
    move = host.make_progress((latents.shape[2] - 1) // window)
    parts = []
    with engine.at_work():
        for index, part in enumerate(model.decode(latents, order=order, latent_window_size=window)):
            host.check_interrupt()
            parts.append(part)
            move(index + 1)
    parts.sort(key=lambda part: part.first_frame)
    return (torch.cat([part.frames for part in parts]).float() / 255,)


DECODE = Node(
    name="IsoframeDecode",
    title="Isoframe: Decode",
    description="Decodes the sampler's latents section by section and joins them as FramePack does.",
    inputs=(
        Input(name="engine", kind=ENGINE),
        Input(name="samples", kind="LATENT", tooltip="From the Isoframe sampler."),
    ),
    outputs=(Output("images", "IMAGE"),),
    run=decode,
)
