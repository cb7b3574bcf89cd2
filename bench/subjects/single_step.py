"""One denoising step as a function without arguments, ours or that of diffusers' class, on the same drawn inputs."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...engine.families.framepack.transformer import PackedTransformer
from ...engine.families.framepack.transformer_config import TransformerConfig
from ...engine.model.attention import SDPA_ATTENTION, SelfAttention
from ...engine.model.attention_backends import AttentionShape
from ...engine.model.packing import ContextGroup
from ...engine.request.config import EngineConfig
from ...quant import WeightFormat
from .random_model import allocate_transformer, chosen_attention, draw_weight, fill_randomly

WINDOW = 9
_TIMESTEP, _GUIDANCE = 612.0, 9984.0
_LATENT = range(1, 10)
# Of the history, by kernel.
_INDICES = {1: (0, 10), 2: (11, 12), 4: tuple(range(13, 29))}

# The sizes of the published checkpoints.
MODEL_13B = TransformerConfig(
    in_channels=16,
    out_channels=16,
    num_attention_heads=24,
    attention_head_dim=128,
    num_layers=20,
    num_single_layers=40,
    num_refiner_layers=2,
    mlp_ratio=4.0,
    patch_size=2,
    patch_size_t=1,
    qk_norm="rms_norm",
    guidance_embeds=True,
    rope_theta=256.0,
    text_embed_dim=4096,
    pooled_projection_dim=768,
    image_proj_dim=1152,
    rope_axes_dim=(16, 56, 56),
    has_image_proj=True,
    has_clean_x_embedder=True,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepShape:
    """Sizes of the inputs of a step with 9 latent frames and full history.

    Attributes:
        size: Y and X of the latents.
        num_text_tokens: valid text tokens.
        num_image_tokens: image tokens.
    """

    size: tuple[int, int]
    num_text_tokens: int
    num_image_tokens: int

    @property
    def num_latent_tokens(self) -> int:
        """Tokens of window and history; a patch that the far end of an axis cuts counts as a whole one."""
        height, width = self.size
        per_frame = [-(-height // patch) * -(-width // patch) for patch in (2, 4, 8)]
        return (WINDOW + 2) * per_frame[0] + per_frame[1] + 4 * per_frame[2]

    @property
    def num_tokens(self) -> int:
        """Latent and condition tokens together."""
        return self.num_latent_tokens + self.num_text_tokens + self.num_image_tokens


# 640 x 608 pixels and a short prompt: 17500 latent and 761 condition tokens.
SHAPE_640X608 = StepShape(size=(76, 80), num_text_tokens=32, num_image_tokens=729)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """Random inputs of a step.

    Attributes:
        latents: noisy latents [1, C, 9, Y, X].
        history: what the section sees, by kernel.
        text: [1, L, E], all valid.
        pooled: [1, P].
        image: [1, I, V].
    """

    latents: Tensor
    history: dict[int, ContextGroup]
    text: Tensor
    pooled: Tensor
    image: Tensor


def draw_inputs(
    config: TransformerConfig, shape: StepShape, dtype: torch.dtype, device: torch.device
) -> StepInputs:
    """Draw the inputs of a step of ``shape``; every call on every device draws the same values."""
    generator = torch.Generator().manual_seed(0)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator).to(device, dtype)

    channels = config.in_channels
    return StepInputs(
        latents=draw(1, channels, WINDOW, *shape.size),
        history={
            kernel: ContextGroup(kernel, draw(1, channels, len(indices), *shape.size), indices)
            for kernel, indices in _INDICES.items()
        },
        text=draw(1, shape.num_text_tokens, config.text_embed_dim),
        pooled=draw(1, config.pooled_projection_dim),
        image=draw(1, shape.num_image_tokens, config.image_proj_dim),
    )


def isoframe_step(
    transformer: PackedTransformer, inputs: StepInputs, attention: SelfAttention = SDPA_ATTENTION
) -> tuple[Callable[[], Tensor], int]:
    """A step whose job's and section's invariants are computed here, as in a real job; and its latent tokens."""
    timestep = torch.tensor([_TIMESTEP], device=inputs.latents.device)
    with torch.inference_mode():
        vision_tokens = transformer.project_image(inputs.image)
        job = transformer.prepare_job(timestep, _GUIDANCE, inputs.text, None, inputs.pooled, vision_tokens)
        num_frames, height, width = inputs.latents.shape[2:]
        groups = list(reversed(inputs.history.values()))
        section = transformer.pack_section(groups, _LATENT, (num_frames, height, width))
    step = transformer.context(attention=attention)
    return (
        lambda: transformer.step(inputs.latents, 0, job, section, step).compute(),
        section.num_latent_tokens,
    )


def random_step(
    config: TransformerConfig,
    shape: StepShape,
    weight_format: WeightFormat,
    device: torch.device,
    *,
    attention: str = "auto",
    source: torch.device | None = None,
) -> tuple[Callable[[], Tensor], str]:
    """A step of ours with weights drawn on ``source``, and the attention that it takes."""
    transformer = fill_randomly(allocate_transformer(config, weight_format, device), source)
    attended = AttentionShape(
        num_tokens=shape.num_tokens,
        num_heads=config.num_attention_heads,
        head_dim=config.attention_head_dim,
        dtype=transformer.dtype,
    )
    with tempfile.TemporaryDirectory() as folder:
        engine_config = EngineConfig(attention=attention, cache_dir=folder)
        found = chosen_attention(engine_config, weight_format.name, device, attended)
    inputs = draw_inputs(config, shape, transformer.dtype, device)
    step, _ = isoframe_step(transformer, inputs, found)
    return step, found.name


def random_diffusers_model(config: TransformerConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """diffusers' class with the weights that :func:`random_step` draws on ``device``."""
    model = diffusers_model(config, dtype, device)
    for name, weight in model.state_dict().items():
        weight.copy_(draw_weight(name, tuple(weight.shape), device))
    return model


def diffusers_model(config: TransformerConfig, dtype: torch.dtype, device: torch.device) -> Any:
    """diffusers' class, made in ``dtype`` on ``device``: a second copy in fp32 would not fit small machines."""
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    default = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            model = HunyuanVideoFramepackTransformer3DModel(**dataclasses.asdict(config))
    finally:
        torch.set_default_dtype(default)
    return model.eval().requires_grad_(False)


def named_history(
    groups: Iterable[ContextGroup], device: torch.device, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """What a section of a published layout sees, as arguments of diffusers' class."""
    arguments: dict[str, Tensor] = {}
    for group in groups:
        name = "clean" if group.kernel == 1 else f"history_{group.kernel}x"
        arguments[f"latents_{name}"] = group.latents.to(device, dtype)
        arguments[f"indices_latents_{name}"] = torch.tensor(list(group.indices), device=device)
    return arguments


def diffusers_step(model: Any, inputs: StepInputs) -> Callable[[], Tensor]:
    """A step of diffusers' class, which has no invariants and computes everything in every call."""
    device = inputs.latents.device
    arguments: dict[str, Any] = {
        "hidden_states": inputs.latents,
        "timestep": torch.tensor([_TIMESTEP], device=device),
        "encoder_hidden_states": inputs.text,
        "encoder_attention_mask": torch.ones(inputs.text.shape[:2], dtype=torch.bool, device=device),
        "pooled_projections": inputs.pooled,
        "image_embeds": inputs.image,
        "guidance": torch.tensor([_GUIDANCE], device=device),
        **named_history(inputs.history.values(), device),
        "indices_latents": torch.tensor(_LATENT, device=device),
        "return_dict": False,
    }
    return lambda: model(**arguments)[0]
