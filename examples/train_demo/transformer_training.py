"""Training of the demo's FramePack transformer."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from isoframe.engine.request.seen import positions
from train_demo.latent_pool import LatentPool
from train_demo.layouts import make_example, sample_layouts
from train_demo.optimizer import MuonAdam
from train_demo.shares import ShareWorkers
from train_demo.small_companions import IMAGE_WIDTH, POOLED_WIDTH, TEXT_WIDTH
from train_demo.training_run import Averages, TrainingRun, step_generator
from train_demo.vae_training import LATENT_CHANNELS

NUM_HEADS, HEAD_DIM, ROPE_AXES = 3, 64, (16, 24, 24)
# The guidance embedding is constant: the engine's default scale of 10, times 1000.
_GUIDANCE = 10_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TransformerSchedule:
    """How the transformer is trained.

    Attributes:
        num_steps: optimizer steps.
        learning_rate: highest learning rate of the matrices; everything else learns at half of it.
        share_size: examples of one batch; a batch has one layout.
        num_shares: batches a step, each computed on its own thread.
        inverted_share: share of the batches in inverted order.
        shift: shift of the noise levels, about that of the sampler at the demo's size.
        seed: seed of the weights and of every batch.
    """

    num_steps: int = 2800
    learning_rate: float = 2e-3
    share_size: int = 12
    num_shares: int = 2
    inverted_share: float = 0.6
    shift: float = 1.6
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of ``step``: 30 steps of warm-up, constant to 30 %, then linear to zero."""
        done = max(0.0, (step / self.num_steps - 0.3) / 0.7)
        return self.learning_rate * min(1.0, (step + 1) / 30) * (1 - done)


def build_transformer(seed: int, *, num_layers: int = 2, num_single_layers: int = 4) -> nn.Module:
    """The demo's transformer; at first every block passes its input on and the output is zero."""
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    torch.manual_seed(seed)
    model: nn.Module = HunyuanVideoFramepackTransformer3DModel(
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_attention_heads=NUM_HEADS,
        attention_head_dim=HEAD_DIM,
        num_layers=num_layers,
        num_single_layers=num_single_layers,
        num_refiner_layers=1,
        text_embed_dim=TEXT_WIDTH,
        pooled_projection_dim=POOLED_WIDTH,
        rope_axes_dim=ROPE_AXES,
        has_image_proj=True,
        image_proj_dim=IMAGE_WIDTH,
        has_clean_x_embedder=True,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if _is_modulation(name) or name.startswith("proj_out"):
                parameter.zero_()
        _start_from_full_resolution(model)
    return model


def _is_modulation(name: str) -> bool:
    return any(
        part in name for part in ("norm1.linear", "norm1_context.linear", ".norm.linear", "norm_out.linear")
    )


def _start_from_full_resolution(model: nn.Module) -> None:
    """The coarse history kernels begin as means of the full-resolution one."""
    parameters = dict(model.named_parameters())
    weight, bias = parameters["x_embedder.proj.weight"], parameters["x_embedder.proj.bias"]
    for name, factor in (("proj", 1), ("proj_2x", 2), ("proj_4x", 4)):
        coarse = weight.repeat(1, 1, factor, factor, factor) / factor**3
        parameters[f"clean_x_embedder.{name}.weight"].copy_(coarse)
        parameters[f"clean_x_embedder.{name}.bias"].copy_(bias)


def build_optimizer(model: nn.Module) -> MuonAdam:
    """Muon for the matrices inside the blocks, Adam for embeddings, modulation and vectors."""
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        is_inner = parameter.ndim == 2 and "blocks" in name and "norm" not in name and ".linear." not in name
        (matrices if is_inner else others).append(parameter)
    return MuonAdam(matrices, others, adam_scale=0.5, betas=(0.9, 0.99), weight_decay=0.01)


def train_transformer(
    run: TrainingRun,
    schedule: TransformerSchedule,
    pool: LatentPool,
    *,
    model: nn.Module | None = None,
    stop_after: int | None = None,
) -> nn.Module:
    """Train from scratch or from the run's checkpoint; returns the averaged weights.

    Args:
        run: log and checkpoint.
        schedule: how.
        pool: encoded clips.
        model: what to train; None builds the demo's transformer.
        stop_after: end after that step, as an interruption would; the checkpoint is written.
    """
    model = model or build_transformer(schedule.seed)
    parameters = dict(model.named_parameters())
    averages = Averages(parameters, decay=0.998)
    optimizer = build_optimizer(model)
    workers = ShareWorkers(schedule.num_shares)
    step = run.restore(model, averages, optimizer)
    last = min(schedule.num_steps, stop_after or schedule.num_steps)
    while step < last:
        losses = workers.gradients(list(parameters.values()), partial(_share, model, schedule, pool, step))
        nn.utils.clip_grad_norm_(parameters.values(), 1.0, error_if_nonfinite=True)
        optimizer.step(schedule.rate(step))
        step += 1
        averages.update(parameters, step)
        run.record(step, losses)
        if run.is_save_due(step) or step == last:
            run.save(step, model, averages, optimizer)
    model.load_state_dict(averages.tensors, strict=False)
    return model


def _share(
    model: nn.Module, schedule: TransformerSchedule, pool: LatentPool, step: int, share: int
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Loss of one share of a step, named by its order."""
    generator = step_generator(schedule.seed, step * schedule.num_shares + share)
    order, inputs, target = _sample_batch(generator, schedule, pool)
    with torch.autocast("cpu", torch.bfloat16):
        velocity = model(**inputs, return_dict=False)[0].float()
    loss = (velocity - target).square().mean()
    return loss, {order: loss.detach()}


def _sample_batch(
    generator: torch.Generator, schedule: TransformerSchedule, pool: LatentPool
) -> tuple[str, dict[str, Any], Tensor]:
    """Order, the transformer's arguments and the velocity it should return [B, C, T, Y, X]."""
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
    size = schedule.share_size
    layouts = sample_layouts(rng, size, inverted_share=schedule.inverted_share)
    clips = torch.tensor([rng.randrange(pool.num_clips) for _ in range(size)])
    examples = [make_example(pool.latents[clip], layout) for clip, layout in zip(clips, layouts, strict=True)]
    target = torch.stack([example.target for example in examples])
    clean = torch.stack([example.clean for example in examples])
    history = torch.cat(
        [
            clean[:, :, 1:],
            torch.stack([example.clean_2x for example in examples]),
            torch.stack([example.clean_4x for example in examples]),
        ],
        dim=2,
    )
    near, mid, far = _disturb(history, generator).split((1, 2, 16), dim=2)
    uniform = torch.rand(size, generator=generator)
    sigma = schedule.shift * uniform / (1 + (schedule.shift - 1) * uniform)
    level = sigma.view(-1, 1, 1, 1, 1)
    noise = torch.randn(target.shape, generator=generator)
    rows, plan = pool.prompt_rows[clips], layouts[0].plan
    indices = {levels[0].kernel: torch.tensor(positions(levels)) for levels in plan.seen.groups()}
    inputs = {
        "hidden_states": (1 - level) * target + level * noise,
        "timestep": sigma * 1000,
        "encoder_hidden_states": pool.prompts.text_embeds[rows],
        "encoder_attention_mask": pool.prompts.text_mask[rows],
        "pooled_projections": pool.prompts.pooled_embeds[rows],
        "image_embeds": pool.image_embeds[clips],
        "guidance": torch.full((size,), _GUIDANCE),
        "indices_latents": torch.tensor(plan.latent_indices),
        "latents_clean": torch.cat([clean[:, :, :1], near], dim=2),
        "indices_latents_clean": indices[1],
        "latents_history_2x": mid,
        "indices_latents_history_2x": indices[2],
        "latents_history_4x": far,
        "indices_latents_history_4x": indices[4],
    }
    return layouts[0].order, inputs, noise - target


def _disturb(history: Tensor, generator: torch.Generator) -> Tensor:
    """Noise on half of the histories, so that the model forgives its own errors; empty frames stay zero."""
    size = history.shape[0]
    strength = 0.25 * torch.rand(size, generator=generator) * (torch.rand(size, generator=generator) < 0.5)
    noise = torch.randn(history.shape, generator=generator) * strength.view(-1, 1, 1, 1, 1)
    is_filled = history.abs().amax((1, 3, 4), keepdim=True) > 0
    return history + noise * is_filled
