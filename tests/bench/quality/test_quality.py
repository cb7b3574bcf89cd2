"""The quality figures are perfect for the truth and tell what is wrong with anything else."""

import pytest
import torch
from train_demo.latent_pool import pool_scene

from isoframe.bench.quality.clip_scores import (
    aligned_iou,
    draw_frames,
    held_out_scene,
    measure_baseline,
    score_clip,
    static_frames,
)
from isoframe.bench.quality.world import MOTIONS

NUM_FRAMES = 37


def test_the_truth_reaches_every_target():
    row = measure_baseline(draw_frames, name="truth", num_pairs=8, num_frames=NUM_FRAMES)
    assert row.is_reached
    assert row.share_on_path == 1
    assert row.center_error < 0.2
    assert row.hue_error < 1
    assert row.aligned_iou > 0.99
    assert row.area_ratio == pytest.approx(1, abs=0.01)
    assert row.psnr > 60
    assert (row.num_pairs, row.num_frames) == (8, NUM_FRAMES)


def test_a_static_video_leaves_the_path():
    row = measure_baseline(static_frames, name="static", num_pairs=8, num_frames=NUM_FRAMES)
    assert not row.is_reached
    assert row.share_on_path < 0.8


def test_a_shifted_video_is_off_the_path_but_has_the_right_shape():
    scene = held_out_scene(0)
    score = score_clip(draw_frames(scene, NUM_FRAMES).roll(6, dims=2), scene)
    assert score.share_on_path < 0.2
    assert score.center_error == pytest.approx(6, abs=1.5)
    assert score.aligned_iou > 0.9


def test_a_wrong_colour_shows_in_the_hue_alone():
    scene = next(scene for i in range(99) if (scene := held_out_scene(i)).color == "red")
    frames = draw_frames(scene, NUM_FRAMES)
    orange = torch.tensor([220, 95, 40], dtype=torch.uint8)
    frames[(frames == torch.tensor([220, 40, 40], dtype=torch.uint8)).all(-1)] = orange
    score = score_clip(frames, scene)
    assert score.hue_error == pytest.approx(18.3, abs=2)
    assert score.share_on_path == 1


def test_an_empty_video_scores_nothing():
    scene = held_out_scene(1)
    empty = torch.zeros(5, 64, 64, 3, dtype=torch.uint8) + 128
    background = draw_frames(scene, 1)[:, :1, :1].expand_as(empty)
    score = score_clip(background.contiguous(), scene)
    assert score.share_on_path == 0
    assert score.center_error > 4
    assert score.aligned_iou < 0.5


def test_a_smaller_shape_has_a_smaller_area_and_overlap():
    square = torch.zeros(64, 64, dtype=torch.bool)
    square[20:40, 20:40] = True
    smaller = torch.zeros_like(square)
    smaller[5:21, 5:21] = True
    assert aligned_iou(square, square) == 1
    assert aligned_iou(smaller, square) == pytest.approx(16**2 / 20**2)
    assert aligned_iou(torch.zeros_like(square), square) == 0


def test_held_out_scenes_take_motions_in_turn_and_are_not_trained_on():
    held_out = [held_out_scene(index) for index in range(16)]
    assert [scene.motion for scene in held_out[:8]] == list(MOTIONS)
    trained = {pool_scene(0, index) for index in range(200)}
    assert not trained & set(held_out)
    assert held_out[0] == held_out_scene(0)
