"""Bad input to the real command: one readable line, the right exit code, no traceback."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model
from typer.testing import CliRunner

from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.interfaces.commands.command_line import build_app

MODEL_FILE = "diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ISOFRAME_CACHE", str(tmp_path / "cache"))
    Image.new("RGB", (64, 64), "teal").save("start.png")


def assert_refused(arguments: list[str], message: str, exit_code: int) -> None:
    result = CliRunner().invoke(build_app(), ["generate", *arguments, "--prompt", "a red circle spins"])
    assert result.exit_code == exit_code, result.output
    assert isinstance(result.exception, SystemExit)
    assert message in " ".join(result.stderr.split())
    assert re.search(r"^error: ", result.stderr, re.MULTILINE)
    assert "Traceback" not in result.output
    assert not Path("x.mp4").exists()


def image_of(width: int, height: int) -> Callable[[], None]:
    return lambda: Image.new("1", (width, height)).save("bad.png")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: None, "image bad.png does not exist"),
        (lambda: Path("bad.png").mkdir(), "image must be a file, bad.png is a folder"),
        (lambda: Path("bad.png").write_text("no picture"), "bad.png"),
        (lambda: Path("bad.png").write_bytes(Path("start.png").read_bytes()[:80]), "damaged or truncated"),
        (image_of(8, 64), "bad.png is 64x8 (height x width)"),
        (image_of(500, 100), "bad.png is 100x500 (height x width)"),
        (image_of(9000, 9000), "at most 64 megapixels, bad.png is 9000x9000 (height x width)"),
    ],
    ids=["missing", "folder", "no-image", "truncated", "tiny", "beyond-4-to-1", "81-megapixels"],
)
def test_bad_image_is_refused(make: Callable[[], object], message: str) -> None:
    make()
    assert_refused(["bad.png", "--out", "x.mp4"], message, exit_code=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--seconds", "0"], "seconds must be a positive number, got 0"),
        (["--seconds", "-3"], "seconds must be a positive number, got -3"),
        (["--seconds", "nan"], "seconds must be a positive number, got nan"),
        (["--seconds", "4000"], "seconds must be at most 3600, got 4000.0; force=True (--force)"),
        (["--steps", "0"], "num_steps must be an integer of at least 1, got 0"),
        (
            ["--order", "forwards"],
            "order must be one of auto, inverted, forward, endpoints, planned, custom, got 'forwards'; did you mean",
        ),
        (
            ["--precision", "bf61"],
            "precision must be one of fp32, bf16, fp16, int8, int8-weight, fp8, nf4, got 'bf61'; did you mean 'bf16'?",
        ),
        (
            ["--step-cache", "tea"],
            "step_cache must be one of none, teacache, magcache, got 'tea'; did you mean 'teacache'?",
        ),
        (
            ["--sampler", "uni"],
            "sampler must be one of unipc, unipc-bh2, euler, got 'uni'; did you mean 'unipc'?",
        ),
        (["--size", "64"], "--size must be HEIGHTxWIDTH such as 640x608, got '64'"),
        (
            ["--size", "60x0"],
            "--size must be HEIGHTxWIDTH in multiples of 16, got 60x0; the nearest is 64x16",
        ),
    ],
    ids=lambda value: value[0][2:] + value[1] if isinstance(value, list) else "",
)
def test_bad_option_is_refused(options: list[str], message: str) -> None:
    assert_refused(["start.png", "--out", "x.mp4", *options], message, exit_code=2)


def test_unknown_model_names_the_nearest() -> None:
    assert_refused(["start.png", "--out", "x.mp4", "--model", "demmo"], "did you mean 'demo'?", exit_code=2)


def test_model_folder_that_is_not_there_names_the_nearest() -> None:
    Path("models").mkdir()
    assert_refused(["start.png", "--out", "x.mp4", "--model", "model"], "did you mean 'models'?", exit_code=2)


def test_model_that_is_too_large_for_the_budget_is_refused() -> None:
    arguments = ["start.png", "--out", "x.mp4", "--ram", "1MiB", "--device", "cpu"]
    assert_refused(arguments, "1 MiB are allowed; use --ram", exit_code=2)


def test_model_that_is_not_cached_says_what_to_download_and_where_it_looked() -> None:
    options = ["--model", "lllyasviel/FramePackI2V_HY", "--local-files-only"]
    assert_refused(
        ["start.png", "--out", "x.mp4", *options], "hf download lllyasviel/FramePackI2V_HY", exit_code=1
    )


@pytest.fixture
def model_folder() -> Path:
    folder = Path("model")
    tiny_model().save_pretrained(folder, max_shard_size="4MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def edit_json(path: Path, **changes: object) -> None:
    raw = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in raw.items() if value is not None}))


def rename_a_tensor(folder: Path) -> None:
    shard = first_shard(folder)
    tensors = load_file(shard)
    tensors["someone_elses"] = tensors.pop(next(iter(tensors)))
    save_file(tensors, shard)


def first_shard(folder: Path) -> Path:
    return min(folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: first_shard(folder).unlink(), "-00001-of-"),
        (
            lambda folder: first_shard(folder).write_bytes(first_shard(folder).read_bytes()[:-1000]),
            "truncated",
        ),
        (lambda folder: first_shard(folder).write_bytes(b"\xff" * 4096), "-00001-of-"),
        (rename_a_tensor, "-00001-of-"),
        (lambda folder: edit_json(folder / "config.json", num_heads=3), "unknown num_heads"),
        (lambda folder: edit_json(folder / "config.json", num_layers=None), "missing num_layers"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not readable JSON"),
    ],
    ids=[
        "no-shard",
        "truncated",
        "corrupt",
        "absent-tensor",
        "unknown-key",
        "missing-key",
        "json",
    ],
)
def test_damaged_checkpoint_is_refused(
    model_folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(model_folder)
    assert_refused(["start.png", "--out", "x.mp4", "--model", str(model_folder)], message, exit_code=1)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("start.png/x.mp4", "output folder start.png cannot be written"),
        ("x.avi", "must end in .mp4, got x.avi"),
        ("taken.mp4", "pass --overwrite"),
    ],
)
def test_bad_output_is_refused(out: str, message: str) -> None:
    Path("taken.mp4").write_bytes(b"mine")
    assert_refused(["start.png", "--out", out], message, exit_code=1)
    assert Path("taken.mp4").read_bytes() == b"mine"


def test_non_finite_latents_name_section_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    head = PackedTransformer.head
    monkeypatch.setattr(PackedTransformer, "head", lambda *args: head(*args) * torch.nan)
    assert_refused(
        ["start.png", "--out", "x.mp4", "--steps", "2"],
        "latents of section 1 became NaN or infinite at step 1",
        exit_code=1,
    )
    assert list(Path().glob("*.mp4")) == []
