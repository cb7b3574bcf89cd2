"""Clips of the demo's world are what their formulas say."""

import random

import pytest
import torch
from train_demo.clutter import render_clutter
from train_demo.latent_pool import pool_scene, world_prompts

from isoframe.bench.quality.world import (
    CANVAS,
    MOTIONS,
    PERIOD,
    SHAPES,
    center_of_mass,
    describe,
    pose,
    render,
    sample_scene,
    truth,
)


def scene_of(motion, seed=0, **named):
    return sample_scene(random.Random(f"{motion}-{seed}"), motion=motion, **named)


@pytest.mark.parametrize("motion", MOTIONS)
def test_every_motion_repeats_after_one_section(motion):
    scene = scene_of(motion)
    frames = torch.arange(0, PERIOD, 5)
    first, later = render(scene, frames), render(scene, frames + 3 * PERIOD)
    assert (first - later).abs().max() < 1e-4
    assert (render(scene, frames[:1]) - render(scene, frames[2:3])).abs().max() > 0.1


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_truth_agrees_with_the_drawing(motion, shape):
    scene = scene_of(motion, shape=shape)
    frames = torch.arange(0, PERIOD, 7)
    expected = truth(scene, frames)
    drawn = render(scene, frames)
    changed = (drawn - expected.background[:, None]).abs().amax(0) > 1e-3
    # Everything that is not background lies under the mask or at its antialiased edge.
    assert (changed & expected.masks).sum() == expected.masks.sum()
    inside = drawn.permute(1, 2, 3, 0)[expected.masks & ~_edge(expected.masks)]
    assert (inside - expected.color).abs().max() < 1e-6
    assert (center_of_mass(expected.masks) - expected.centers).norm(dim=1).max() < 0.5


def _edge(masks):
    """Pixels of the shape within two pixels of the background: a star's slanted edge is that wide."""
    wide = torch.nn.functional.max_pool2d((~masks).float()[:, None], 5, 1, 2)[:, 0]
    return wide > 0


@pytest.mark.parametrize("motion", MOTIONS)
def test_shapes_stay_inside_the_canvas(motion):
    for seed in range(20):
        masks = truth(scene_of(motion, seed), torch.arange(PERIOD)).masks
        border = masks[:, [0, -1]].any() or masks[:, :, [0, -1]].any()
        assert not border


def test_motions_go_where_their_names_say():
    half = torch.tensor([0.0, PERIOD / 2])
    x, y, radius, angle = (0, 1, 2, 3)

    def change(motion, quantity):
        before, after = pose(scene_of(motion), half)[quantity].tolist()
        return after - before

    assert change("moves right", x) > 15
    assert change("moves left", x) < -15
    assert change("moves up", y) < -15
    assert change("moves down", y) > 15
    assert change("bounces", y) < -15
    assert change("grows", radius) > 4
    assert change("shrinks", radius) < -4
    assert change("spins", angle) > 0.5


def test_scenes_and_clutter_are_the_same_for_the_same_seed():
    assert pool_scene(3, 7) == pool_scene(3, 7)
    assert pool_scene(3, 7) != pool_scene(3, 8)
    clips = [
        render_clutter(torch.Generator().manual_seed(5), num_clips=2, num_frames=3, size=24, num_shapes=2)
        for _ in range(2)
    ]
    assert torch.equal(*clips)
    assert clips[0].shape == (2, 3, 3, 24, 24)


def test_size_scales_the_picture():
    scene = scene_of("moves right")
    small = truth(scene, torch.arange(3))
    large = truth(scene, torch.arange(3), size=2 * CANVAS)
    assert (large.centers / 2 - small.centers).abs().max() < 0.1


def test_prompts_are_sentences_with_their_article():
    assert describe("orange", "star", "spins") == "an orange star spins"
    assert scene_of("bounces", color="red", shape="circle").prompt == "a red circle bounces"
    assert len(set(world_prompts())) == len(world_prompts()) == 8 * 4 * 8
