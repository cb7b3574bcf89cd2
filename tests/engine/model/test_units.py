"""Units: every weight of a block lies in exactly one blob, aligned, and comes back from it."""

import pytest
import torch
from published_config import PUBLISHED
from tiny_models import TINY, tiny_model

from isoframe.engine.families.framepack.transformer_config import TransformerConfig
from isoframe.engine.families.framepack.unit_layout import unit_specs
from isoframe.engine.model.units import UnitLayout
from isoframe.quant import DenseFormat


@pytest.fixture
def layouts() -> list[UnitLayout]:
    config = TransformerConfig.from_dict(tiny_model().config, source="test")
    return [UnitLayout(spec, DenseFormat(torch.float32)) for spec in unit_specs(config)]


def test_the_published_model_has_eighty_units_of_about_one_size() -> None:
    config = TransformerConfig.from_dict(PUBLISHED, source="test")
    sizes = [UnitLayout(spec, DenseFormat(torch.bfloat16)).num_bytes for spec in unit_specs(config)]
    assert len(sizes) == 80
    # 113.27 million parameters in bf16; a single-stream block has one bias of 3072 values less.
    assert all(size == pytest.approx(2 * 113.27e6, abs=2e4) for size in sizes)
    assert all(size % 4096 == 0 for size in sizes)


def test_what_is_written_to_a_blob_is_what_its_layers_multiply(layouts: list[UnitLayout]) -> None:
    state = tiny_model().state_dict()
    single = layouts[2 * TINY["num_layers"]]  # type: ignore[operator]  # an int among other types
    blob = torch.zeros(single.num_bytes, dtype=torch.uint8)
    for name, destination in single.destinations(blob).items():
        destination.write(state[name])
    prefix = "single_transformer_blocks.0"
    names = [f"{prefix}.attn.to_{part}" for part in "qkv"] + [f"{prefix}.proj_mlp"]
    x = torch.randn(1, 3, 128)
    expected = torch.cat([x @ state[f"{n}.weight"].T + state[f"{n}.bias"] for n in names], dim=2)
    out = torch.empty_like(expected)
    layer = single.bind(blob).layer("qkv_mlp")
    layer.into(layer.input(x), out)
    torch.testing.assert_close(out, expected)


def test_every_block_weight_but_the_head_norms_belongs_to_one_unit(layouts: list[UnitLayout]) -> None:
    names = [
        name
        for layout in layouts
        for name in layout.destinations(torch.empty(layout.num_bytes, dtype=torch.uint8))
    ]
    assert len(names) == len(set(names))
    excluded = ("norm", "norm1", "norm1_context", "norm_q", "norm_k", "norm_added_q", "norm_added_k")
    expected = {
        name
        for name in tiny_model().state_dict()
        if name.startswith(("transformer_blocks.", "single_transformer_blocks."))
        and not set(name.split(".")) & set(excluded)
    }
    assert set(names) == expected


def test_tensors_of_a_blob_are_aligned(layouts: list[UnitLayout]) -> None:
    for layout in layouts:
        blob = torch.empty(layout.num_bytes, dtype=torch.uint8)
        for tensors in layout.tensors(blob).values():
            for tensor in tensors.values():
                assert (tensor.data_ptr() - blob.data_ptr()) % 256 == 0
