"""The drop-in offers what scripts call on diffusers' transformer around its forward."""

from pathlib import Path

import pytest
import torch
from tiny_models import forward_inputs, saved_model

from isoframe.engine.errors import UnknownModelError
from isoframe.engine.interfaces.diffusers import load_transformer


def test_parameters_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    reference = saved_model(tmp_path)
    ours = load_transformer(tmp_path)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters())
    assert {(p.dtype, p.device.type) for p in ours.parameters()} == {(torch.float32, "cpu")}
    assert not any(p.requires_grad for p in ours.parameters())


def test_casting_gives_what_loading_in_that_dtype_gives(tmp_path: Path) -> None:
    saved_model(tmp_path)
    inputs = forward_inputs((3, 4), order="forward", window=2)
    cast = load_transformer(tmp_path).to("cpu", torch.bfloat16)
    loaded = load_transformer(tmp_path, dtype=torch.bfloat16)
    assert cast.dtype == torch.bfloat16
    assert {p.dtype for p in cast.parameters()} == {torch.bfloat16}
    assert torch.equal(cast(**inputs).sample, loaded(**inputs).sample)


def test_casting_drops_what_was_cached(tmp_path: Path) -> None:
    saved_model(tmp_path)
    inputs = forward_inputs((3, 4), order="forward", window=2)
    ours = load_transformer(tmp_path)
    expected = ours(**inputs).sample
    ours.begin_section(num_steps=1)
    ours.to(dtype=torch.bfloat16)(**inputs)
    assert torch.equal(ours.to(dtype=torch.float32)(**inputs).sample, expected)


def test_moving_to_where_it_is_reads_nothing(tmp_path: Path) -> None:
    saved_model(tmp_path)
    ours = load_transformer(tmp_path)
    before = ours.transformer
    assert ours.to("cpu").to(torch.float32).eval().requires_grad_(False).transformer is before


def test_gradients_are_refused(tmp_path: Path) -> None:
    saved_model(tmp_path)
    with pytest.raises(ValueError, match="for inference only"):
        load_transformer(tmp_path).requires_grad_()


def test_the_built_in_model_loads_by_its_name_and_a_wrong_path_is_named(tmp_path: Path) -> None:
    assert load_transformer("demo").config.in_channels == 16
    with pytest.raises(UnknownModelError) as caught:
        load_transformer(tmp_path / "nothing")
    assert f"got {str(tmp_path / 'nothing')!r}: as a path it does not exist" in str(caught.value)
