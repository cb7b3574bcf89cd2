"""Files that are damaged or hostile are refused by name, as checkpoints and as LoRAs, and no pickle is ever run."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hostile_files import DAMAGED, DOWN, UP, Bomb, entry, safetensors, zipped_pickle
from lora_cases import layer_shapes, read_lora
from safetensors.torch import load_file, save_file
from tiny_models import saved_model, tiny_model

from isoframe.engine import CheckpointError, Engine, EngineConfig
from isoframe.engine.checkpoints.tensor_files import open_tensor_file
from isoframe.engine.companions.encoders import Encoders
from isoframe.engine.families.opening import open_transformer

SHAPES = layer_shapes(tiny_model())
OUT = SHAPES["single_transformer_blocks.1.proj_out"][0]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def open_folder(path: Path) -> object:
    """As the weights in a folder, with a configuration beside them."""
    folder = path.parent / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(dict(tiny_model().config)))
    path.rename(folder / WEIGHTS)
    return open_transformer(folder)


READERS: dict[str, Callable[[Path], object]] = {
    "lora": lambda path: read_lora(path, SHAPES),
    "checkpoint": open_transformer,
    "folder": open_folder,
    "companion": open_tensor_file,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, case: str, reader: str) -> None:
    content, message = DAMAGED[case]
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        READERS[reader](path)
    name = WEIGHTS if reader == "folder" else path.name
    assert name in str(caught.value)


@pytest.mark.parametrize("reader", ["lora", "checkpoint"])
@pytest.mark.parametrize("name", ["bomb.safetensors", "bomb.pt", "bomb.bin", "bomb.ckpt"])
@pytest.mark.parametrize("protocol", [*range(6), "zip"])
def test_no_pickle_is_ever_run(tmp_path: Path, name: str, protocol: int | str, reader: str) -> None:
    bomb = Bomb(tmp_path / "trace")
    content = zipped_pickle(bomb) if protocol == "zip" else pickle.dumps(bomb, protocol=int(protocol))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        READERS[reader](tmp_path / name)
    assert not bomb.path.exists()
    pickle.loads(pickle.dumps(bomb))
    assert bomb.path.exists(), "the bomb works"


# What a reader of tensors alone would let pass.
NOT_FOR_A_MODEL = {
    "no-tensors": safetensors({}),
    "only-metadata": safetensors({"__metadata__": {"format": "pt"}}),
    "unknown-dtype": safetensors({DOWN: entry([2, 4], 0, 32, "Q7")}, bytes(32)),
    "boolean": safetensors({DOWN: entry([2, 4], 0, 8, "BOOL")}, bytes(8)),
    "shape-of-0-times-2**70": safetensors({DOWN: entry([0, 2**70], 0, 0), UP: entry([OUT, 0], 0, 0)}),
}


@pytest.mark.parametrize("reader", ["lora", "checkpoint"])
@pytest.mark.parametrize("case", NOT_FOR_A_MODEL)
def test_tensors_of_no_use_are_refused(tmp_path: Path, case: str, reader: str) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(NOT_FOR_A_MODEL[case])
    expected = {
        "lora": "is no LoRA|misshapen",
        "checkpoint": "is not a FramePack transformer|tensors that are not F64, F32",
    }[reader]
    with pytest.raises(CheckpointError, match=expected):
        READERS[reader](path)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("is_stored", [False, True], ids=["read", "stored"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("proj_out.bias", torch.nan),
        ("norm_out.linear.weight", torch.inf),
        ("transformer_blocks.1.attn.to_q.weight", torch.nan),
        ("single_transformer_blocks.0.proj_out.bias", -torch.inf),
    ],
)
def test_weights_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: float, is_stored: bool, precision: str
) -> None:
    if is_stored:
        monkeypatch.setattr("isoframe.engine.planning.planned_job._STORED_BYTES", 1)
    saved_model(tmp_path / "model")
    path = tmp_path / "model" / WEIGHTS
    state = load_file(path)
    state[name].view(-1)[5] = value
    save_file(state, path)
    with pytest.raises(CheckpointError, match=f"{name} has values that are not finite"):
        Engine.load(
            tmp_path / "model",
            config=EngineConfig(device="cpu", precision=precision, cache_dir=tmp_path / "cache"),
        )


def test_weights_of_an_unknown_dtype_are_refused_by_name(tmp_path: Path) -> None:
    saved_model(tmp_path)
    path = tmp_path / WEIGHTS
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["proj_out.bias"]["dtype"] = "F4"
    path.write_bytes(safetensors(header, content[8 + length :]))
    with pytest.raises(CheckpointError, match=r"proj_out\.bias.*F4"):
        open_transformer(tmp_path)


def test_an_encoder_in_a_pickle_is_not_loaded(tmp_path: Path) -> None:
    """transformers would take pytorch_model.bin where there is no safetensors file."""
    from dataclasses import replace

    from isoframe.engine.companions.components import find_components

    folder = tmp_path / "text_encoder_2"
    demo = find_components("demo")
    source = demo.ref("text_encoder_2").fetch()
    folder.mkdir()
    (folder / "config.json").write_bytes((source / "config.json").read_bytes())
    bomb = Bomb(tmp_path / "trace")
    (folder / "pytorch_model.bin").write_bytes(zipped_pickle(bomb))
    found = find_components("demo", overrides={"text_encoder_2": str(folder)})
    encoders = Encoders(replace(found), device="cpu", dtype=torch.float32, cache_dir=tmp_path / "cache")
    with pytest.raises(CheckpointError, match="text_encoder_2"):
        encoders.encode_prompt("a star")
    assert not bomb.path.exists()
