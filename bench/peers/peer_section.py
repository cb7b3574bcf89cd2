"""One section denoised by us and by diffusers' class: same weights, same inputs, in turn, in one process."""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...engine.companions.components import find_components
from ...engine.engine import Engine
from ...engine.generation.model_lookup import find_model
from ...engine.model.conditioning import Conditioning
from ...engine.model.packing import ContextGroup
from ...engine.request.config import EngineConfig, SamplingConfig
from ...engine.request.sections import SectionPlan, plan_sections
from ...engine.sampling.history import History
from ...engine.sampling.sampler import sigma_schedule
from ...quant import DENSE_DTYPES
from ..subjects.random_model import model_conditioning
from ..subjects.single_step import named_history
from .in_turn import Clock, PeerResult, compare_in_turn

# Largest accepted relative RMS difference of the latents: rounding grows over the steps of a section.
MAX_ERRORS = {"fp32": 1e-3, "bf16": 0.1}


def compare_sections(
    model: str,
    *,
    device: torch.device,
    precision: str,
    size: tuple[int, int] | None,
    num_steps: int,
    repeats: int,
    clock: Clock = time.perf_counter,
) -> PeerResult:
    """Check that both denoise the same section, then time ``repeats`` of each, one of each in turn.

    Both start from the same embeddings and noise and take the same Euler steps; ours includes what it computes once a
    job. Prompt, VAE and file are left out.

    Args:
        model: as ``Engine.load`` takes it; its transformer must be one that diffusers reads.
        device: where both run, both wholly on it.
        precision: "fp32" or "bf16".
        size: (height, width) in pixels; None is the model's first bucket.
        num_steps: of the section.
        repeats: sections of each.
        clock: seconds.

    Raises:
        IsoframeError: the latents differ by more than :data:`MAX_ERRORS`; nothing is timed then.
    """
    known = find_model(model)
    conditioning = model_conditioning(known, size or known.buckets[0])
    sampling = SamplingConfig(num_sections=1, num_steps=num_steps, order="forward", sampler="euler")
    engine = Engine.load(model, config=EngineConfig(device=str(device), precision=precision))
    peer = DiffusersSection(model, device, DENSE_DTYPES[precision])

    def ours() -> Tensor:
        return next(iter(engine.sample(conditioning, sampling))).latents

    def theirs() -> Tensor:
        return peer.sample(conditioning, sampling)

    return compare_in_turn(
        theirs,
        ours,
        what=f"{model} in {precision}: the latents",
        limit=MAX_ERRORS[precision],
        repeats=repeats,
        clock=clock,
    )


class DiffusersSection:
    """diffusers' transformer in the loop that its pipeline runs for the first section in forward order."""

    def __init__(self, model: str, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import HunyuanVideoFramepackTransformer3DModel

        source = find_components(model).transformer
        # A pipeline's folder, or that of a transformer alone, as the published ones are.
        subfolder = "transformer" if (Path(source) / "transformer").is_dir() else None
        self._device, self._dtype = device, dtype
        self._model: Any = HunyuanVideoFramepackTransformer3DModel.from_pretrained(
            source, subfolder=subfolder, torch_dtype=dtype
        )
        self._model.to(device).eval().requires_grad_(False)

    @torch.inference_mode()
    def sample(self, conditioning: Conditioning, sampling: SamplingConfig) -> Tensor:
        """Latents [1, C, window, Y, X] fp32 on the CPU."""
        start = conditioning.start_latent.float()
        (section,) = plans = plan_sections(sampling)
        seen = History(start, plans).groups(section)
        shape = (1, start.shape[1], sampling.latent_window_size, *start.shape[3:])
        noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(sampling.seed))
        sigmas = sigma_schedule(sampling.num_steps, shape[2] * shape[3] * shape[4] // 4)
        arguments = self._arguments(conditioning, seen, section, sampling)
        latents = noise.to(self._device)
        for sigma, following in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
            timestep = torch.tensor([sigma * 1000], device=self._device, dtype=self._dtype)
            velocity = self._model(
                hidden_states=latents.to(self._dtype), timestep=timestep, return_dict=False, **arguments
            )[0]
            latents = latents + (following - sigma) * velocity.float()
        return latents.cpu()

    def _arguments(
        self,
        conditioning: Conditioning,
        seen: list[ContextGroup],
        section: SectionPlan,
        sampling: SamplingConfig,
    ) -> dict[str, Any]:
        """What stays the same in all steps, as the class names it."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(self._device, self._dtype)

        return {
            "encoder_hidden_states": move(conditioning.text_embeds),
            "encoder_attention_mask": conditioning.text_mask.to(self._device),
            "pooled_projections": move(conditioning.pooled_embeds),
            "image_embeds": move(conditioning.image_embeds),
            "guidance": torch.tensor(
                [sampling.guidance_scale * 1000], device=self._device, dtype=self._dtype
            ),
            **named_history(seen, self._device, self._dtype),
            "indices_latents": torch.tensor(list(section.latent_indices), device=self._device),
        }
