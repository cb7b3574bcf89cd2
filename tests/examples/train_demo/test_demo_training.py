"""The demo's trainings take steps, log them, and resume to identical weights."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from train_demo.demo_conditioning import DemoEncoders, PromptTable
from train_demo.folding import fold_latent_statistics
from train_demo.latent_pool import LatentPool, world_prompts
from train_demo.layouts import (
    Layout,
    forward_layouts,
    layouts_by_padding,
    make_example,
    periodic_latents,
    sample_layouts,
)
from train_demo.optimizer import MuonAdam
from train_demo.padding import pad_by_concatenation
from train_demo.shares import ShareWorkers
from train_demo.small_companions import save_companions, vocabulary
from train_demo.train import parse_arguments
from train_demo.training_run import TrainingRun
from train_demo.transformer_training import TransformerSchedule, build_transformer, train_transformer
from train_demo.vae_training import VaeSchedule, build_vae, train_vae

from isoframe.engine.errors import InputError
from isoframe.engine.request.config import SamplingConfig
from isoframe.engine.request.sections import plan_sections

ROOT = Path(__file__).resolve().parents[3]
VAE = VaeSchedule(num_steps=3, num_shares=1)
TRANSFORMER = TransformerSchedule(num_steps=3, share_size=2)


def small_pool():
    generator = torch.Generator().manual_seed(1)
    return LatentPool(
        latents=torch.randn(3, 16, 19, 4, 4, generator=generator),
        image_embeds=torch.randn(3, 4, 64, generator=generator),
        prompt_rows=torch.tensor([1, 0, 1]),
        prompts=PromptTable(
            rows={"a": 0, "b": 1},
            text_embeds=torch.randn(2, 5, 96, generator=generator),
            text_mask=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
            pooled_embeds=torch.randn(2, 64, generator=generator),
        ),
    )


def small_transformer(seed=0):
    return build_transformer(seed, num_layers=1, num_single_layers=1)


def numbered_clip():
    """19 latents whose values are their frame numbers."""
    return torch.arange(19.0).view(1, 19, 1, 1)


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


def test_resumed_vae_training_equals_an_unbroken_one(tmp_path):
    unbroken = train_vae(TrainingRun(tmp_path / "a", log_every=1), VAE)
    train_vae(TrainingRun(tmp_path / "b", log_every=1), VAE, stop_after=1)
    resumed = train_vae(TrainingRun(tmp_path / "b", is_resumed=True, log_every=1), VAE)
    assert_same_weights(unbroken.state_dict(), resumed.state_dict())
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "losses.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_resumed_transformer_training_equals_an_unbroken_one(tmp_path):
    pool = small_pool()
    unbroken = train_transformer(TrainingRun(tmp_path / "a"), TRANSFORMER, pool, model=small_transformer())
    train_transformer(TrainingRun(tmp_path / "b"), TRANSFORMER, pool, model=small_transformer(), stop_after=2)
    run = TrainingRun(tmp_path / "b", is_resumed=True)
    # The weights come from the checkpoint, not from the model that is passed.
    resumed = train_transformer(run, TRANSFORMER, pool, model=small_transformer(seed=5))
    assert_same_weights(unbroken.state_dict(), resumed.state_dict())
    start = small_transformer().state_dict()
    assert not torch.equal(start["proj_out.weight"], unbroken.state_dict()["proj_out.weight"])


def test_a_folder_with_a_training_is_not_overwritten(tmp_path):
    run = TrainingRun(tmp_path / "a", log_every=1)
    run.record(1, {"loss": 1.0})
    with pytest.raises(InputError, match="resume it or name another folder"):
        TrainingRun(tmp_path / "a")


def test_layouts_are_those_of_the_engine():
    groups = layouts_by_padding()
    assert sorted(groups) == [0, 1, 2, 3]
    for padding, layouts in groups.items():
        assert len({layout.plan.latent_indices for layout in layouts}) == 1
        assert all(layout.plan.latent_padding == padding for layout in layouts)
    # A job of 17 sections shows the model no history and no padding that training lacks.
    trained = {(p, min(layout.plan.index, 3)) for p, layouts in groups.items() for layout in layouts}
    plans = plan_sections(SamplingConfig(num_sections=17))
    assert {(plan.latent_padding, min(plan.index, 3)) for plan in plans} <= trained


def test_inverted_history_is_what_follows_in_the_video():
    plan = plan_sections(SamplingConfig(num_sections=3))[1]
    example = make_example(numbered_clip(), Layout(order="inverted", plan=plan))
    assert example.target.flatten().tolist() == list(range(10, 19))
    # Frames 19 to 27 repeat the second period.
    assert example.clean.flatten().tolist() == [0, 10]
    assert example.clean_2x.flatten().tolist() == [11, 12]
    assert example.clean_4x.flatten().tolist() == [13, 14, 15, 16, 17, 18] + [0] * 10


def test_forward_history_ends_with_the_newest_frame():
    example = make_example(numbered_clip(), forward_layouts()[1])
    assert example.target.flatten().tolist() == list(range(10, 19))
    assert example.clean.flatten().tolist() == [0, 9]
    assert example.clean_2x.flatten().tolist() == [7, 8]
    assert example.clean_4x.flatten().tolist() == [0] * 10 + [1, 2, 3, 4, 5, 6][-6:]


def test_latents_repeat_after_the_second_period():
    assert periodic_latents(numbered_clip(), 1).flatten().tolist() == list(range(1, 10))
    assert periodic_latents(numbered_clip(), 1 + 9 * 5).flatten().tolist() == list(range(10, 19))


def test_a_batch_has_one_layout():
    for seed in range(20):
        layouts = sample_layouts(random.Random(seed), 4, inverted_share=0.5)
        assert len({(layout.order, layout.plan.latent_indices) for layout in layouts}) == 1


def test_shares_give_the_mean_gradient():
    weight = torch.zeros(2, requires_grad=True)
    unused = torch.zeros(2, requires_grad=True)

    def compute(share):
        loss = (weight * torch.tensor([1.0, share])).sum()
        return loss, {f"loss{share}": loss.detach() + share}

    losses = ShareWorkers(3).gradients([weight, unused], compute)
    assert weight.grad.tolist() == [1.0, 1.0]
    assert unused.grad is None
    assert losses == {"loss0": 0.0, "loss1": 1.0, "loss2": 2.0}


@pytest.mark.parametrize("shape", [(8, 8), (5, 20), (20, 5), (8, 2, 3, 1, 2)])
def test_a_matrix_moves_by_singular_values_near_one_times_adams_size(shape):
    matrix = torch.randn(shape).requires_grad_()
    before = matrix.detach().clone()
    matrix.grad = torch.randn(shape)
    MuonAdam([matrix], [torch.zeros(1).requires_grad_()]).step(0.1)
    moved = (before - matrix.detach()).flatten(1) / (0.1 * 0.2 * max(before.flatten(1).shape) ** 0.5)
    values = torch.linalg.svdvals(moved)
    assert values.min() > 0.3
    assert values.max() < 1.5


def test_optimizer_lowers_a_quadratic():
    matrix, vector = torch.randn(4, 6).requires_grad_(), torch.randn(5).requires_grad_()
    optimizer = MuonAdam([matrix], [vector])
    before = (matrix.square().sum() + vector.square().sum()).item()
    for _ in range(60):
        matrix.grad = vector.grad = None
        loss = matrix.square().sum() + vector.square().sum()
        loss.backward()
        optimizer.step(0.05)
    assert loss.item() < 0.3 * before


def test_padding_by_concatenation_changes_nothing():
    vae = build_vae(0)
    clip = torch.rand(1, 3, 5, 16, 16)
    expected = vae.encode(clip).latent_dist.mean
    pad_by_concatenation(vae)
    assert torch.allclose(vae.encode(clip).latent_dist.mean, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_folding_normalizes_latents_and_keeps_the_picture():
    vae = build_vae(0)
    pad_by_concatenation(vae)
    latents = torch.randn(1, 16, 2, 8, 8)
    clip = torch.rand(1, 3, 5, 64, 64) * 2 - 1
    before = vae.decode(vae.encode(clip).latent_dist.mean).sample
    fold_latent_statistics(vae, seed=0, num_clips=2)
    after = vae.decode(vae.encode(clip).latent_dist.mean).sample
    assert (after - before).abs().max() < 1e-3 * before.abs().max()
    fold_again = vae.quant_conv.weight.clone()
    fold_latent_statistics(vae, seed=0, num_clips=2)
    assert torch.allclose(fold_again, vae.quant_conv.weight, rtol=1e-3)
    assert vae.decode(latents).sample.shape == (1, 3, 5, 64, 64)


def test_companions_tell_every_prompt_from_every_other(tmp_path):
    save_companions(tmp_path, seed=0)
    encoders = DemoEncoders(tmp_path)
    table = encoders.encode_prompts(world_prompts())
    assert table.text_embeds.shape == (256, 7, 96)
    assert set(table.text_mask.sum(1).tolist()) == {6, 7}
    flat = table.text_embeds.flatten(1)
    distances = torch.cdist(flat, flat) + 1e3 * torch.eye(len(flat))
    assert distances.min() > 1
    words = {word for prompt in world_prompts() for word in prompt.split()}
    assert words <= set(vocabulary())
    images = encoders.encode_images(torch.zeros(2, 3, 64, 64))
    assert images.shape == (2, 16, 64)


def test_the_command_runs_from_a_clone(tmp_path):
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'examples'}{os.pathsep}{ROOT / '.src'}"}
    command = [
        sys.executable,
        "-P",
        "-m",
        "train_demo.train",
        "encoders",
        "--folder",
        str(tmp_path / "model"),
    ]
    subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "model" / "text_encoder" / "config.json").is_file()


def test_command_line_names_every_stage():
    plan, stages = parse_arguments(["all", "--seed", "3", "--vae-steps", "5", "--stop-after", "2"])
    assert stages == ("encoders", "vae", "transformer")
    assert (plan.seed, plan.num_vae_steps, plan.stop_after, plan.is_resumed) == (3, 5, 2, False)
