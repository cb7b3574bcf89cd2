"""Checkpoints outside FramePack are refused before any weight is allocated."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_models import saved_model

from isoframe.engine import CheckpointError
from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.families.opening import open_transformer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"has_image_proj": False}, "has_image_proj must be True in a FramePack transformer's config, got False"),
        ({"has_clean_x_embedder": False}, "has_clean_x_embedder must be True"),
        ({"patch_size": 4}, "patch_size must be 2 in a FramePack transformer's config, got 4"),
        ({"num_single_layers": 0}, "num_single_layers must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_a_transformer_of_another_kind_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    saved_model(tmp_path)
    config = dataclasses.replace(open_transformer(tmp_path).config, **changes)
    with pytest.raises(CheckpointError, match=message):
        PackedTransformer(config, torch.float32, torch.device("meta"))
