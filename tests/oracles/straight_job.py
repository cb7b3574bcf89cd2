"""A whole job in straight-line fp32 code, with diffusers' class as the model.

Written from the description of the published flows: sections, history, noise, guidance and step caching are all here,
one after the other, and nothing is computed once that could be computed again.
"""

from dataclasses import dataclass, field

import torch
import unipc
from diffusers import HunyuanVideoFramepackTransformer3DModel
from torch import Tensor, nn

CHANGE_TO_DISTANCE = (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896)


@dataclass(kw_only=True)
class Prompt:
    """One branch of guidance: text [1, L, E], mask bool [1, L], pooled [1, P]."""

    text: Tensor
    mask: Tensor
    pooled: Tensor


@dataclass(kw_only=True)
class Job:
    """Everything that one job depends on.

    ``coefficients`` is the dtype of the sampler's scalars; ``skips`` are the steps at which the blocks add what they
    added last.
    """

    positive: Prompt
    negative: Prompt | None = None
    image_embeds: Tensor
    start_latent: Tensor
    num_sections: int
    num_steps: int
    order: str = "inverted"
    guidance_scale: float = 10.0
    cfg_scale: float = 1.0
    cfg_rescale: float = 0.0
    seed: int = 31337
    window: int = 9
    sampler: str = "unipc"
    teacache_threshold: float | None = None
    skips: frozenset[int] = frozenset()
    paddings: tuple[int, ...] | None = None
    coefficients: torch.dtype = torch.float32


@dataclass
class CacheState:
    """What a step cache remembers of one branch within one section."""

    counter: int = 0
    accumulated: float = 0.0
    previous: Tensor | None = None
    residual: Tensor | None = None
    decisions: list[bool] = field(default_factory=list)


class CachedBlocks(nn.Module):
    """All blocks of a model as one block that computes or adds what it added last time."""

    def __init__(self, model: HunyuanVideoFramepackTransformer3DModel, job: Job) -> None:
        super().__init__()
        self.blocks = [*model.transformer_blocks, *model.single_transformer_blocks]
        self.num_steps = job.num_steps
        self.threshold = job.teacache_threshold
        self.skips = job.skips
        self.state = CacheState()

    def forward(
        self, video: Tensor, text: Tensor, temb: Tensor, mask: None, rope: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        state = self.state
        signal = self.blocks[0].norm1(video, emb=temb)[0]
        if self.threshold is None:
            is_computed = state.counter not in self.skips
        elif state.counter in (0, self.num_steps - 1):
            is_computed, state.accumulated = True, 0.0
        else:
            assert state.previous is not None
            change = ((signal - state.previous).abs().mean() / state.previous.abs().mean()).item()
            distance = 0.0
            for coefficient in CHANGE_TO_DISTANCE:
                distance = distance * change + coefficient
            state.accumulated += distance
            is_computed = state.accumulated >= self.threshold
            if is_computed:
                state.accumulated = 0.0
        state.previous = signal
        state.counter = (state.counter + 1) % self.num_steps
        state.decisions.append(is_computed)
        if not is_computed:
            return video + state.residual, text
        before = video
        for block in self.blocks:
            video, text = block(video, text, temb, mask, rope)
        state.residual = video - before
        return video, text


def published_paddings(num_sections: int) -> tuple[int, ...]:
    """Windows between the start frame and each section of the inverted order."""
    if num_sections > 4:
        return (3, *[2] * (num_sections - 3), 1, 0)
    return tuple(reversed(range(num_sections)))


def guided_velocity(
    model: HunyuanVideoFramepackTransformer3DModel,
    job: Job,
    x: Tensor,
    sigma: Tensor,
    context: dict[str, Tensor],
    caches: tuple[CacheState, CacheState],
) -> Tensor:
    """Velocity of one step: one pass, or two and the guidance formula."""

    def velocity(prompt: Prompt, cache: CacheState) -> Tensor:
        if isinstance(model.transformer_blocks[0], CachedBlocks):
            model.transformer_blocks[0].state = cache
        return model(
            hidden_states=x,
            timestep=(sigma * 1000).expand(1),
            encoder_hidden_states=prompt.text,
            encoder_attention_mask=prompt.mask,
            pooled_projections=prompt.pooled,
            guidance=torch.tensor([job.guidance_scale * 1000]),
            image_embeds=job.image_embeds,
            return_dict=False,
            **context,
        )[0]

    positive = velocity(job.positive, caches[0])
    if job.cfg_scale == 1.0:
        guided = positive
    else:
        assert job.negative is not None
        negative = velocity(job.negative, caches[1])
        guided = negative + job.cfg_scale * (positive - negative)
    if job.cfg_rescale != 0:
        rescaled = guided * (positive.std() / guided.std())
        guided = job.cfg_rescale * rescaled + (1 - job.cfg_rescale) * guided
    return guided


def sample_section(
    model: HunyuanVideoFramepackTransformer3DModel, job: Job, noise: Tensor, context: dict[str, Tensor]
) -> tuple[Tensor, list[bool]]:
    """Latents of one section and, with a step cache, which calls were computed."""
    sigmas = unipc.schedule(job.num_steps, noise[0, 0].numel() // 4)
    caches = (CacheState(), CacheState())

    def denoise(x: Tensor, i: int) -> Tensor:
        return x - sigmas[i] * guided_velocity(model, job, x, sigmas[i], context, caches)

    if job.sampler == "euler":
        latents = unipc.sample_euler(denoise, noise, sigmas)
    else:
        variant = "bh2" if job.sampler == "unipc-bh2" else "bh1"
        latents = unipc.sample_unipc(denoise, noise, sigmas, variant=variant, dtype=job.coefficients)
    return latents, caches[0].decisions + caches[1].decisions


def run_inverted(model: HunyuanVideoFramepackTransformer3DModel, job: Job) -> tuple[list[Tensor], list[bool]]:
    """Sections from the end of the video back to the start latent, in generation order."""
    w, start = job.window, job.start_latent
    generator = torch.Generator("cpu").manual_seed(job.seed)
    history = torch.zeros(1, 16, 19, *start.shape[-2:])
    sections, decisions = [], []
    for padding in job.paddings or published_paddings(job.num_sections):
        noise = torch.randn(1, 16, w, *start.shape[-2:], generator=generator, dtype=torch.float32)
        first = 1 + padding * w
        context = {
            "indices_latents": torch.arange(first, first + w),
            "latents_clean": torch.cat([start, history[:, :, :1]], 2),
            "indices_latents_clean": torch.tensor([0, first + w]),
            "latents_history_2x": history[:, :, 1:3],
            "indices_latents_history_2x": torch.arange(first + w + 1, first + w + 3),
            "latents_history_4x": history[:, :, 3:19],
            "indices_latents_history_4x": torch.arange(first + w + 3, first + w + 19),
        }
        latents, computed = sample_section(model, job, noise, context)
        history = torch.cat([latents, history], 2)
        sections.append(latents)
        decisions += computed
    return sections, decisions


def run_forward(model: HunyuanVideoFramepackTransformer3DModel, job: Job) -> tuple[list[Tensor], list[bool]]:
    """Sections from the start latent on."""
    w, start = job.window, job.start_latent
    generator = torch.Generator("cpu").manual_seed(job.seed)
    history = torch.cat([torch.zeros(1, 16, 19, *start.shape[-2:]), start], 2)
    sections, decisions = [], []
    for _ in range(job.num_sections):
        noise = torch.randn(1, 16, w, *start.shape[-2:], generator=generator, dtype=torch.float32)
        recent = history[:, :, -19:]
        context = {
            "indices_latents": torch.arange(20, 20 + w),
            "latents_clean": torch.cat([start, recent[:, :, 18:]], 2),
            "indices_latents_clean": torch.tensor([0, 19]),
            "latents_history_2x": recent[:, :, 16:18],
            "indices_latents_history_2x": torch.tensor([17, 18]),
            "latents_history_4x": recent[:, :, :16],
            "indices_latents_history_4x": torch.arange(1, 17),
        }
        latents, computed = sample_section(model, job, noise, context)
        history = torch.cat([history, latents], 2)
        sections.append(latents)
        decisions += computed
    return sections, decisions


@torch.no_grad()
def run_job(model: HunyuanVideoFramepackTransformer3DModel, job: Job) -> tuple[Tensor, list[bool]]:
    """The video's latents [1, 16, 1 + sections * window, h, w] and the step cache's decisions, call by call."""
    double_blocks, single_blocks = model.transformer_blocks, model.single_transformer_blocks
    if job.teacache_threshold is not None or job.skips:
        cached = CachedBlocks(model, job)
        model.transformer_blocks, model.single_transformer_blocks = nn.ModuleList([cached]), nn.ModuleList()
    try:
        sections, decisions = run_inverted(model, job) if job.order == "inverted" else run_forward(model, job)
    finally:
        model.transformer_blocks, model.single_transformer_blocks = double_blocks, single_blocks
    in_video_order = sections[::-1] if job.order == "inverted" else sections
    return torch.cat([job.start_latent, *in_video_order], 2), decisions
