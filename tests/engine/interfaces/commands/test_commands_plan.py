"""``isoframe plan`` as people call it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from isoframe.engine.interfaces.commands.command_line import build_app

SMALL = ["--vram", "6GiB", "--ram", "16GiB", "--card", "rtx 3060 laptop"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(build_app(), ["plan", *arguments])


def test_the_published_model_in_int8_fits_six_gibibytes() -> None:
    result = run(
        "--model", "framepack-13b", "--vram", "6GiB", "--ram", "16GiB", "--precision", "int8", "--size", "640x608"
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "framepack-13b, int8, 640x608 (height x width)" in result.stdout
    assert "VAE decode" in result.stdout


@pytest.mark.parametrize("arguments", [["--vram", "4GiB", "--precision", "int8"], ["--vram", "6GiB"]])
def test_less_memory_and_bf16_fit_too(arguments: list[str]) -> None:
    result = run(*arguments, "--ram", "16GiB", "--json")
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["fits"]
    assert plan["peak"] <= plan["vram"]
    assert plan["card"]["is_estimate"]


def test_what_does_not_fit_exits_with_two_and_what_would() -> None:
    result = run("--vram", "2200MiB", "--ram", "16GiB", "--size", "640x608")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "needs at least" in result.stderr
    assert "--vram" in result.stderr
    assert "--size" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--vram", "six"], "vram must be a positive size such as 6GiB"),
        (["--vram", "-1GiB"], "vram must be a positive size"),
        (["--vram", "8GiB", "--card", "RTX 3060 Laptop"], "at most the 6.00 GiB that RTX 3060 Laptop has"),
        (["--card", "rtx 4091"], "did you mean RTX 4090"),
        ([*SMALL, "--precision", "int9"], "did you mean 'int8'"),
        ([*SMALL, "--size", "640"], "--size must be HEIGHTxWIDTH"),
        ([*SMALL, "--steps", "0"], "num_steps must be an integer of at least 1"),
    ],
)
def test_bad_options_exit_with_two_and_say_what_is_right(arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_options_reach_the_plan() -> None:
    result = run(*SMALL, "--steps", "12", "--window", "5", "--seconds", "10", "--size", "480x832", "--json")
    plan = json.loads(result.stdout)
    assert (plan["num_steps"], plan["window"], plan["size"]) == (12, 5, [480, 832])
    assert plan["num_frames"] == 4 * 5 * 15 + 1
    assert plan["card"]["name"] == "RTX 3060 Laptop"


@pytest.mark.parametrize("order", ["endpoints", "planned", "1,0"])
def test_an_experimental_order_is_planned_when_it_is_allowed(order: str) -> None:
    arguments = [*SMALL, "--order", order, "--seconds", "2", "--size", "480x832", "--json"]
    refused = run(*arguments)
    assert refused.exit_code == 2
    assert "--allow-untrained" in refused.stderr
    planned = run(*arguments, "--allow-untrained")
    assert planned.exit_code == 0, planned.output
    assert json.loads(planned.stdout)["num_frames"] == 4 * 9 * 2 + 1


def test_without_a_size_the_most_demanding_bucket_is_planned() -> None:
    largest = json.loads(run(*SMALL, "--json").stdout)
    other = json.loads(run(*SMALL, "--json", "--size", "640x608").stdout)
    peaks = [
        next(phase for phase in plan["phases"] if phase["name"] == "denoise")["activations"]
        for plan in (largest, other)
    ]
    assert peaks[0] > peaks[1]


@pytest.mark.parametrize("model", ["lllyasviel/FramePackI2V_HY", "lllyasviel/FramePack_F1_I2V_HY_20250503"])
def test_published_hub_ids_need_no_download(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", pytest.fail)
    result = run(*SMALL, "--model", model)
    assert result.exit_code == 0, result.output


def test_the_demo_has_its_own_shapes_and_sizes() -> None:
    result = run(*SMALL, "--model", "demo", "--json")
    plan = json.loads(result.stdout)
    assert plan["size"] == [64, 64]
    assert plan["num_units"] < 80
    assert plan["phases"][0]["weights"] < 10 * 2**20


def test_a_plan_for_a_named_card_imports_no_torch() -> None:
    root = Path(__file__).resolve().parents[4]
    script = (
        "import sys; from isoframe.engine.interfaces.commands.command_line import build_app\n"
        "try: build_app()(['plan', '--card', 'RTX 3060', '--ram', '16GiB'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={"PYTHONPATH": str(root / ".src"), "PATH": ""},
        capture_output=True,
    )
    assert result.returncode == 0, result.stderr.decode()
