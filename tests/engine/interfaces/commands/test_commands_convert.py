"""``isoframe convert`` as a user meets it."""

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import Result
from lora_cases import in_kohya_names, layer_shapes, random_lora, read_lora, saved
from packed_steps import one_step
from tiny_models import relative_error, saved_model
from typer.testing import CliRunner

from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.weights.store import open_store
from isoframe.engine.weights.transformer_from_store import open_units, stored_transformer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISOFRAME_CACHE", str(tmp_path / "cache"))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), ["convert", *arguments])


def test_the_demo_model_becomes_an_int8_store() -> None:
    result = run("demo", "demo-int8")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"demo-int8: demo in int8, 0\.\d\d GiB\n", result.stdout)
    assert result.stderr == "", "no bar where there is no terminal"
    assert open_store("demo-int8").name == "demo"


def test_without_a_folder_the_store_goes_to_the_cache() -> None:
    result = run("demo", "--precision", "bf16", "--quiet")
    assert result.exit_code == 0, result.output
    assert result.output == ""
    (folder,) = Path("cache/stores").iterdir()
    assert re.fullmatch(r"[0-9a-f]{64}-bf16-v1", folder.name)


@pytest.mark.parametrize(("has_cuda", "suffix"), [(True, "int8"), (False, "int8-float32")])
def test_the_store_in_the_cache_is_the_one_that_the_engine_here_looks_for(
    has_cuda: bool, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
    assert run("demo", "--precision", "int8").exit_code == 0
    (folder,) = Path("cache/stores").iterdir()
    assert folder.name.endswith(f"-{suffix}-v1")


def test_a_store_is_verified_and_a_flipped_bit_names_its_unit() -> None:
    run("demo", "demo-int8")
    result = run("--verify", "demo-int8")
    assert result.exit_code == 0, result.output
    assert re.fullmatch(r"demo-int8: \d+ tensors, 0\.\d\d GiB, all as they were written\n", result.stdout)
    unit = open_store("demo-int8").units[3]
    with unit.entry.path.open("r+b") as file:
        file.seek(unit.entry.start + 1000)
        byte = file.read(1)[0]
        file.seek(unit.entry.start + 1000)
        file.write(bytes([byte ^ 16]))
    result = run("--verify", "demo-int8", "--quiet")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {unit.name} in demo-int8/units-0000")
    assert "is damaged: its bytes do not match their hash; delete demo-int8 and convert" in result.stderr


def test_the_report_lists_every_weight_once() -> None:
    result = run("demo", "demo-int8", "--report", "--compute-dtype", "fp32")
    opened = open_store("demo-int8")
    lines = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()[:-1]}
    assert set(lines) == {*opened.sqnr, *opened.parameters}
    name = "single_transformer_blocks.0.attn.to_q.weight"
    assert lines[name] == ["int8", f"{opened.sqnr[name]:.1f}", "dB"]
    assert lines["x_embedder.proj.weight"] == ["f16", "kept"]


def test_loras_are_merged_into_the_store(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "model")
    lora_file = saved(tmp_path / "style.safetensors", in_kohya_names(random_lora(layer_shapes(model))))
    arguments = ("model", "--precision", "fp32", "--compute-dtype", "fp32")
    for folder, extra in (("plain", ()), ("half", ("--lora", "style.safetensors:0.5"))):
        result = run(arguments[0], folder, *arguments[1:], *extra)
        assert result.exit_code == 0, result.output
    plain, half = open_store("plain"), open_store("half")
    transformers = [
        stored_transformer(store, CPU, open_units(store, CPU, tier="pinned", ring=2))
        for store in (plain, half)
    ]
    lora = read_lora(lora_file, transformers[0].layer_shapes)
    expected = one_step(transformers[0].with_loras([(lora, 0.5)]))
    assert relative_error(one_step(transformers[0]), expected) > 0.1
    assert relative_error(one_step(transformers[1]), expected) <= 1e-5
    result = run("model", "half", *arguments[1:], "--lora", "style.safetensors:0.6")
    assert result.exit_code == 1
    assert "half is a store of another model" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message", "exit_code"),
    [
        (["demo", "out", "--precision", "int9"], "--precision must be one of fp32, bf16, fp16, int8", 2),
        (["demo", "out", "--compute-dtype", "fp8"], "--compute-dtype must be one of auto, fp32", 2),
        (["nowhere", "out"], "must be demo, a folder, a .safetensors file or a Hub id", 2),
        (["demo", "out", "--lora", "none:1"], "--lora must be FILE:STRENGTH: none does not exist", 2),
        (["demo", "out", "--lora", "taken:1@2"], "must be FILE:STRENGTH without sections, got taken:1@2", 2),
        (["demo", "--lora", "taken:1"], "--lora needs a folder [DST]", 2),
        (["demo", "out", "--lora", "taken:1"], "taken must have one .safetensors file, got 0", 1),
        (["--verify", "taken"], "taken has no manifest.json: it is not a unit store", 1),
        (["--verify", "demo", "out"], "--verify takes one store, got demo and out", 2),
        (["demo", "taken"], "taken exists and is not a unit store; choose another folder", 1),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: list[str], message: str, exit_code: int) -> None:
    Path("taken").mkdir()
    result = run(*arguments)
    assert result.exit_code == exit_code, result.output
    assert message in result.stderr
    assert result.stderr.startswith("error: ")
    assert not Path("out").exists()


def test_a_store_is_no_source_of_a_conversion() -> None:
    run("demo", "demo-int8")
    result = run("demo-int8", "again", "--precision", "bf16")
    assert result.exit_code == 1
    assert "demo-int8 is a unit store already; give the model that it was made from" in result.stderr


def test_info_tells_what_a_store_holds() -> None:
    run("demo", "demo-int8")
    result = CliRunner().invoke(build_app(), ["info", "demo-int8", "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    opened = open_store("demo-int8")
    assert (facts["name"], facts["precision"], facts["num_units"]) == ("demo", "int8", 8)
    assert facts["num_bytes"] == opened.num_bytes
    assert 20 < facts["least_sqnr_db"] < 60
    assert facts["source_hash"] == opened.source_hash
