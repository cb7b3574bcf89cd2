"""The one choice between families, and what the chosen one answers."""

import pytest
from published_config import PUBLISHED

from isoframe.engine.errors import CheckpointError
from isoframe.engine.families.framepack.family import FramePack
from isoframe.engine.families.framepack.transformer_config import TransformerConfig
from isoframe.engine.families.opening import read_config
from isoframe.engine.families.registry import families, family_of, find_published, recognise
from isoframe.engine.model.precision import PRECISIONS
from isoframe.engine.request.config import SamplingConfig

SAMPLING = SamplingConfig(num_sections=1)
CONFIG = TransformerConfig.from_dict(PUBLISHED, source="test")


def test_a_transformer_is_recognised_by_its_class_or_its_tensors() -> None:
    assert recognise("HunyuanVideoTransformer3DModelPacked") is FramePack
    assert recognise(tensor_names=["x_embedder.proj.weight"]) is FramePack
    assert not FramePack.recognises("WanTransformer3DModel", ["patch_embedding.weight"])


def test_a_stranger_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"_class_name must be .*, got 'WanTransformer3DModel'"):
        read_config({"_class_name": "WanTransformer3DModel"}, source="x/config.json")


def test_a_configuration_leads_to_its_family_and_its_units() -> None:
    family = family_of(CONFIG)
    assert isinstance(family, FramePack)
    sizes = family.sizes("mine", {})
    (phase,) = sizes.phases(SAMPLING, (640, 608), PRECISIONS["bf16"], attention="float", num_text_tokens=9)
    assert len(family.unit_specs()) == len(phase.weights.units) == 80
    assert [unit for block in phase.blocks for unit in block.units] == list(range(80))
    assert phase.sequence.text == 9


@pytest.mark.parametrize("family", families())
def test_what_a_family_publishes_is_planned_without_its_files(family: type[FramePack]) -> None:
    for name, order in family.hub_models().items():
        published = find_published(name)
        assert published is not None
        assert (published.order, len(published.buckets)) == (order, 14)
    assert set(family.encoders) <= set(family.companions())
    assert find_published("someone/else") is None
