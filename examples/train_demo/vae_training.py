"""Training of the demo's video VAE."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from isoframe.bench.quality.world import PERIOD, render, sample_scene
from train_demo.clutter import render_clutter
from train_demo.optimizer import MuonAdam
from train_demo.padding import pad_by_concatenation
from train_demo.shares import ShareWorkers
from train_demo.training_run import Averages, TrainingRun, step_generator

BLOCK_CHANNELS = (16, 32, 64, 64)
LATENT_CHANNELS = 16
SCALING_FACTOR = 0.476986


@dataclass(frozen=True, slots=True, kw_only=True)
class VaeSchedule:
    """How the VAE is trained.

    Attributes:
        num_steps: optimizer steps.
        learning_rate: highest learning rate.
        clutter_share: share of the steps on small crops of clutter, at the start; the rest sees whole frames.
        num_shares: batches a step, each computed on its own thread.
        seed: seed of the weights and of every batch.
    """

    num_steps: int = 2200
    learning_rate: float = 4e-3
    clutter_share: float = 0.7
    num_shares: int = 2
    seed: int = 0

    def rate(self, step: int) -> float:
        """Learning rate of ``step``: 40 steps of warm-up, then a cosine down to 2 %."""
        done = max(0.0, (step / self.num_steps - 0.15) / 0.85)
        cosine = 0.5 * (1 + math.cos(math.pi * done)) * 0.98 + 0.02
        return self.learning_rate * min(1.0, (step + 1) / 40) * cosine

    def sharpness_weight(self, step: int) -> float:
        """Weight of the absolute and gradient losses; squared error alone finds the shapes first."""
        return min(1.0, max(0.0, (step / self.num_steps - self.clutter_share) / 0.15))


def build_vae(seed: int) -> nn.Module:
    """A small ``AutoencoderKLHunyuanVideo`` with an initialization that trains fast."""
    from diffusers import AutoencoderKLHunyuanVideo

    torch.manual_seed(seed)
    vae: nn.Module = AutoencoderKLHunyuanVideo(
        latent_channels=LATENT_CHANNELS,
        block_out_channels=BLOCK_CHANNELS,
        layers_per_block=1,
        norm_num_groups=1,
        scaling_factor=SCALING_FACTOR,
    )
    with torch.no_grad():
        for name, module in vae.named_modules():
            if isinstance(module, nn.Conv3d):
                assert module.bias is not None
                module.weight.normal_(0, module.weight[0].numel() ** -0.5)
                module.bias.normal_(0, 0.3)
                if "conv2" in name:
                    module.weight.mul_(0.1)
        # A posterior that starts narrow: the noise must not drown the first weak latents.
        quant = vae.get_submodule("quant_conv")
        assert isinstance(quant, nn.Conv3d)
        assert quant.bias is not None
        quant.bias[LATENT_CHANNELS:].fill_(-5.0)
        quant.weight[LATENT_CHANNELS:].mul_(0.1)
    return vae


def train_vae(run: TrainingRun, schedule: VaeSchedule, *, stop_after: int | None = None) -> nn.Module:
    """Train from scratch or from the run's checkpoint; returns the averaged weights.

    ``stop_after`` ends early, after that step, as an interruption would; the checkpoint is written.
    """
    vae = build_vae(schedule.seed)
    pad_by_concatenation(vae)
    parameters = dict(vae.named_parameters())
    averages = Averages(parameters, decay=0.995)
    optimizer = MuonAdam(
        [value for value in parameters.values() if value.ndim >= 2],
        [value for value in parameters.values() if value.ndim < 2],
    )
    workers = ShareWorkers(schedule.num_shares)
    step = run.restore(vae, averages, optimizer)
    last = min(schedule.num_steps, stop_after or schedule.num_steps)
    while step < last:
        losses = workers.gradients(list(parameters.values()), partial(_share, vae, schedule, step))
        norm = nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        step += 1
        # Some CPUs return NaN from the bf16 gradient of a 3-D convolution: leave that step out.
        if torch.isfinite(norm):
            optimizer.step(schedule.rate(step - 1))
            averages.update(parameters, step)
        run.record(step, losses)
        if run.is_save_due(step) or step == last:
            run.save(step, vae, averages, optimizer)
    vae.load_state_dict(averages.tensors)
    return vae


def _share(
    vae: nn.Module, schedule: VaeSchedule, step: int, share: int
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Loss of one share of a step, and its parts."""
    generator = step_generator(schedule.seed, step * schedule.num_shares + share)
    is_clutter = step < schedule.clutter_share * schedule.num_steps
    clips, first_latent = _sample_clips(generator, is_clutter=is_clutter)
    losses = _losses(vae, clips, first_latent, generator)
    sharpness = losses["absolute"] + losses["gradient"]
    loss = 10 * losses["squared"] + schedule.sharpness_weight(step) * sharpness
    return loss + 1e-5 * losses["divergence"], losses


def _sample_clips(generator: torch.Generator, *, is_clutter: bool) -> tuple[Tensor, int]:
    """Clips [B, 3, T, H, W], and the latent frame from which they are to be decoded."""
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))
    if is_clutter:
        num_frames, num_clips = rng.choices([(5, 6), (9, 3), (1, 12)], [0.7, 0.2, 0.1])[0]
        num_shapes = rng.randint(2, 4)
        clutter = render_clutter(
            generator, num_clips=num_clips, num_frames=num_frames, size=32, num_shapes=num_shapes
        )
        return clutter, 0
    num_frames, num_clips = rng.choices([(9, 2), (17, 1), (33, 1), (1, 8)], [0.55, 0.22, 0.13, 0.1])[0]
    first_latent = 0
    if num_frames >= 17 and rng.random() < 0.5:
        # As section-wise decoding does: the first latent of the slice stands for four frames, decoded as one.
        first_latent = rng.randint(1, (num_frames - 1) // 4 - 2)
    if rng.random() < 0.4:
        num_shapes = rng.randint(1, 6)
        clutter = render_clutter(
            generator, num_clips=num_clips, num_frames=num_frames, size=64, num_shapes=num_shapes
        )
        return clutter, first_latent
    clips = []
    for _ in range(num_clips):
        start = rng.randrange(PERIOD)
        clips.append(render(sample_scene(rng), torch.arange(start, start + num_frames)))
    return torch.stack(clips), first_latent


def _losses(
    vae: nn.Module, clips: Tensor, first_latent: int, generator: torch.Generator
) -> Mapping[str, Tensor]:
    """Means over the clips: squared, absolute and gradient error, and divergence from the unit normal."""
    with torch.autocast("cpu", torch.bfloat16):
        posterior = vae.encode(clips).latent_dist  # type: ignore[operator]  # diffusers' own method
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = torch.randn(mean.shape, generator=generator)
        latents = mean + torch.exp(0.5 * logvar) * noise
        output = vae.decode(latents[:, :, first_latent:]).sample.float()  # type: ignore[operator]  # the same
    target = clips[:, :, 4 * first_latent :]
    error = output - target
    return {
        "squared": error.square().mean(),
        "absolute": error.abs().mean(),
        "gradient": error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean(),
        "divergence": 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(),
    }
