"""One denoising step of our transformer against diffusers' class: same weights, same process, alternating."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ..engine.errors import IsoframeError
from ..engine.history import CleanLatents
from ..engine.transformer import FrameIndices, PackedTransformer
from ..engine.transformer_config import TransformerConfig

_WINDOW = 9
_TIMESTEP, _GUIDANCE = 612.0, 9984.0
_INDICES = FrameIndices(latent=range(1, 10), clean=(0, 10), clean_2x=range(11, 13), clean_4x=range(13, 29))


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardCase:
    """What one comparison runs.

    Attributes:
        name: of the case.
        dtype: of weights and activations.
        config: transformer; weights are random.
        size: Y and X of the latents; 9 latent frames and full history.
        num_text_tokens: valid text tokens.
        num_image_tokens: image tokens.
        max_ratio: largest accepted ratio of the medians, ours over diffusers'.
        max_error: largest accepted relative error between both results, as a gate before any timing.
    """

    name: str
    dtype: torch.dtype
    config: TransformerConfig
    size: tuple[int, int]
    num_text_tokens: int
    num_image_tokens: int
    max_ratio: float
    max_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardResult:
    """One comparison, done.

    Attributes:
        case: what ran.
        num_latent_tokens: latent tokens of a step.
        error: relative error between both results.
        diffusers_times: seconds of every step of diffusers' class.
        isoframe_times: seconds of every step of ours.
    """

    case: ForwardCase
    num_latent_tokens: int
    error: float
    diffusers_times: tuple[float, ...]
    isoframe_times: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Ratio of the medians, ours over diffusers'."""
        return statistics.median(self.isoframe_times) / statistics.median(self.diffusers_times)

    @property
    def is_reached(self) -> bool:
        return self.ratio <= self.case.max_ratio


def _config(
    num_heads: int, head_dim: int, num_single: int, num_refiner: int, widths: tuple[int, int, int]
) -> TransformerConfig:
    text, pooled, image = widths
    return TransformerConfig(
        in_channels=16,
        out_channels=16,
        num_attention_heads=num_heads,
        attention_head_dim=head_dim,
        num_layers=2,
        num_single_layers=num_single,
        num_refiner_layers=num_refiner,
        mlp_ratio=4.0,
        patch_size=2,
        patch_size_t=1,
        qk_norm="rms_norm",
        guidance_embeds=True,
        rope_theta=256.0,
        text_embed_dim=text,
        pooled_projection_dim=pooled,
        image_proj_dim=image,
        rope_axes_dim=(16, 56, 56) if head_dim == 128 else (16, 24, 24),
        has_image_proj=True,
        has_clean_x_embedder=True,
    )


_DEMO = _config(3, 64, 4, 1, (96, 64, 64))
# Two blocks of each kind at the width of the 13B model.
_SLICE = _config(24, 128, 2, 2, (4096, 768, 1152))

CASES = {
    case.name: case
    for case in (
        ForwardCase(
            name="demo-fp32", dtype=torch.float32, config=_DEMO, size=(8, 8),
            num_text_tokens=9, num_image_tokens=16, max_ratio=0.85, max_error=1e-5,
        ),
        ForwardCase(
            name="13b-slice-bf16", dtype=torch.bfloat16, config=_SLICE, size=(16, 20),
            num_text_tokens=32, num_image_tokens=60, max_ratio=0.85, max_error=0.05,
        ),
        ForwardCase(
            name="13b-slice-fp32", dtype=torch.float32, config=_SLICE, size=(16, 20),
            num_text_tokens=32, num_image_tokens=60, max_ratio=0.95, max_error=1e-5,
        ),
    )
}  # fmt: skip


def compare_forward(case: ForwardCase, repeats: int) -> ForwardResult:
    """Time ``repeats`` steps of both, one of each in turn, after checking that they agree.

    Ours runs what a step runs: the job's and the section's invariants are computed before, as in a real job.
    diffusers' class has no such split and computes them in every call.

    Raises:
        IsoframeError: the two results differ by more than ``case.max_error``; nothing is timed then.
    """
    diffusers_step, isoframe_step, num_latent_tokens = _build(case)
    with torch.inference_mode():
        expected, actual = diffusers_step(), isoframe_step()
        error = float((actual - expected).abs().max() / expected.abs().max())
        if not error <= case.max_error:
            raise IsoframeError(
                f"{case.name}: the results differ by {error:.2e}, more than {case.max_error:.0e}; nothing was timed"
            )
        times = [(_seconds(diffusers_step), _seconds(isoframe_step)) for _ in range(repeats)]
    diffusers_times, isoframe_times = zip(*times, strict=True)
    return ForwardResult(
        case=case,
        num_latent_tokens=num_latent_tokens,
        error=error,
        diffusers_times=diffusers_times,
        isoframe_times=isoframe_times,
    )


def _build(case: ForwardCase) -> tuple[Callable[[], Tensor], Callable[[], Tensor], int]:
    """One step of diffusers' class, one of ours, and the number of latent tokens."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(case.dtype)

    config, (height, width) = case.config, case.size
    peer = _diffusers_model(case)
    ours = PackedTransformer(config, case.dtype, torch.device("cpu"))
    for name, tensor in peer.state_dict().items():
        ours.destinations[name].write(tensor)
    latents = draw(1, config.in_channels, _WINDOW, height, width)
    history = CleanLatents(*(draw(1, config.in_channels, frames, height, width) for frames in (2, 2, 16)))
    text = draw(1, case.num_text_tokens, config.text_embed_dim)
    pooled = draw(1, config.pooled_projection_dim)
    image = draw(1, case.num_image_tokens, config.image_proj_dim)
    timestep = torch.tensor([_TIMESTEP])
    arguments: dict[str, Any] = {
        "hidden_states": latents,
        "timestep": timestep,
        "encoder_hidden_states": text,
        "encoder_attention_mask": torch.ones(1, case.num_text_tokens, dtype=torch.bool),
        "pooled_projections": pooled,
        "image_embeds": image,
        "guidance": torch.tensor([_GUIDANCE]),
        "latents_clean": history.clean,
        "latents_history_2x": history.clean_2x,
        "latents_history_4x": history.clean_4x,
        "indices_latents": torch.tensor(_INDICES.latent),
        "indices_latents_clean": torch.tensor(_INDICES.clean),
        "indices_latents_history_2x": torch.tensor(_INDICES.clean_2x),
        "indices_latents_history_4x": torch.tensor(_INDICES.clean_4x),
        "return_dict": False,
    }
    with torch.inference_mode():
        job = ours.prepare_job(timestep, _GUIDANCE, text, None, pooled, ours.project_image(image))
        section = ours.pack_section(history, _INDICES, (_WINDOW, height, width))
    return (
        lambda: peer(**arguments)[0],
        lambda: ours.step(latents, 0, job, section).compute(),
        section.num_latent_tokens,
    )


def _diffusers_model(case: ForwardCase) -> Any:
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    default = torch.get_default_dtype()
    torch.manual_seed(0)
    # Made in its dtype: a second copy of the slice in fp32 would not fit small machines.
    torch.set_default_dtype(case.dtype)
    try:
        model = HunyuanVideoFramepackTransformer3DModel(**asdict(case.config))
    finally:
        torch.set_default_dtype(default)
    return model.eval().requires_grad_(False)


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
