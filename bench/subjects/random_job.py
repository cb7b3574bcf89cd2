"""A whole job with random weights: denoise, decode, write; neither prompt nor image is read, nothing is downloaded."""

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...engine.companions.components import find_components
from ...engine.companions.vae import SectionDecoder, VideoVAE
from ...engine.events import EventHandler, FileEvent, PhaseEvent, SectionEvent
from ...engine.families.registry import PUBLISHED_NAME
from ...engine.generation.model_lookup import find_model
from ...engine.media.codecs import VideoFormat
from ...engine.media.video import VideoWriter
from ...engine.request.config import EngineConfig, Request
from .random_model import RandomModel, model_conditioning


class RandomJob:
    """Makes videos of noise with a transformer and a VAE of a model's shapes."""

    def __init__(self, source: str, config: EngineConfig, device: torch.device) -> None:
        """Draw the weights.

        Args:
            source: "framepack-13b", "demo" or a folder.
            config: precision and attention.
            device: where all weights are.
        """
        self._source = source
        self._known = find_model(source)
        self._device = device
        self._model = RandomModel(self._known.shapes.transformer, config, device)

    def render(self, request: Request, path: Path, on_event: EventHandler) -> None:
        """Write a video and report the events of a job; image and prompt of ``request`` are not looked at."""
        height, width = request.size or self._known.buckets[0]
        sampling = request.sampling(self._known.order)
        conditioning = model_conditioning(self._known, (height, width))
        decoder = SectionDecoder(
            self._vae,
            order=sampling.order,
            window=sampling.latent_window_size,
            num_sections=sampling.num_sections,
            start_latent=conditioning.start_latent,
        )
        num_frames = decoder.num_frames
        with VideoWriter(path, VideoFormat(height=height, width=width), num_frames=num_frames) as writer:
            for section in self._model.sample(conditioning, sampling, on_event=on_event):
                on_event(PhaseEvent(phase="decode"))
                decoded = decoder.push(section.latents)
                on_event(PhaseEvent(phase="encode"))
                writer.write(decoded.frames, decoded.first_frame)
                on_event(
                    SectionEvent(
                        section=section.index,
                        num_sections=sampling.num_sections,
                        num_final_frames=writer.num_final_frames,
                        num_frames=num_frames,
                    )
                )
            on_event(PhaseEvent(phase="write"))
            writer.finish()
        on_event(FileEvent(path=path))

    @cached_property
    def _vae(self) -> VideoVAE:
        from diffusers import AutoencoderKLHunyuanVideo

        torch.manual_seed(0)
        # The class' own defaults are the published shapes.
        config: Any = {}
        if self._source != PUBLISHED_NAME:
            config = AutoencoderKLHunyuanVideo.load_config(find_components(self._source).ref("vae").fetch())
        model: Any = AutoencoderKLHunyuanVideo.from_config(config)
        dtype = torch.float32 if self._device.type == "cpu" else torch.float16
        # The class' own method warns of layers that it does not have.
        return VideoVAE(torch.nn.Module.to(model, self._device, dtype))
