"""A device that is absent or too small is named, with what would help."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import saved_model

from isoframe.engine import BudgetError, DeviceError, Engine, EngineConfig, Request, device
from isoframe.engine.companions.encoders import Encoders
from isoframe.engine.companions.vae import VideoVAE
from isoframe.engine.families.transformer_base import StepPass
from isoframe.engine.model.attention_backends import AttentionShape
from isoframe.engine.model.attention_choice import CANDIDATES
from isoframe.engine.weights import memory


def test_a_model_that_cannot_fit_is_refused_before_its_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved_model(tmp_path / "small")
    monkeypatch.setattr(memory, "load_into", None)
    with pytest.raises(
        BudgetError,
        match=r"needs at least \d+ MiB \(phase denoise\), 1 MiB are allowed; use --ram \d+MiB",
    ) as caught:
        Engine.load(tmp_path / "small", config=EngineConfig(device="cpu", ram="1MiB"))
    assert caught.value.available == 2**20 < caught.value.needed


@pytest.mark.parametrize(
    ("owner", "method", "message"),
    [
        (Encoders, "encode_prompts", r"phase 'text' \(no room\); use device='cpu'"),
        (VideoVAE, "encode", r"phase 'image' \(no room\); use device='cpu'"),
        (StepPass, "compute", r"phase 'denoise' \(no room\); take a smaller size \(--size\)"),
        (VideoVAE, "decode", r"phase 'decode' \(no room\); set vae_tiles=True \(--vae-tiles\)"),
    ],
    ids=["text", "image", "denoise", "decode"],
)
def test_lack_of_memory_names_the_phase_and_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, method: str, message: str
) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise torch.OutOfMemoryError("no room")

    engine = Engine.load("demo", config=EngineConfig(device="cpu", cache_dir=tmp_path))
    monkeypatch.setattr(owner, method, fail)
    image = Path(__file__).parents[2] / "examples" / "spin.png"
    request = Request(
        image=image, prompt="a red circle spins", seconds=0.2, num_steps=1, latent_window_size=1
    )
    with pytest.raises(DeviceError, match=message):
        next(engine.generate(request))


def test_an_attention_that_cannot_run_at_the_size_is_refused_before_anything_is_encoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def obstacle(shape: AttentionShape, _: torch.device) -> str | None:
        return f"{shape.num_tokens} tokens are too many" if shape.num_tokens > 100 else None

    refusing = replace(CANDIDATES["sdpa"], obstacle=obstacle)
    monkeypatch.setitem(CANDIDATES, "sdpa", refusing)  # type: ignore[arg-type]  # a dict
    monkeypatch.setattr(Encoders, "encode_prompts", lambda *_: pytest.fail("encoded"))
    image = Path(__file__).parents[2] / "examples" / "spin.png"
    with (
        Engine.load("demo", config=EngineConfig(device="cpu", cache_dir=tmp_path)) as engine,
        pytest.raises(DeviceError, match="tokens are too many"),
    ):
        engine.generate(Request(image=image, prompt="a red circle spins"))


def test_cuda_without_triton_is_refused_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    device.check_triton(torch.device("cuda"))
    monkeypatch.setattr(device, "HAS_TRITON", False)
    device.check_triton(torch.device("cpu"))
    with pytest.raises(DeviceError, match="pip install triton"):
        device.check_triton(torch.device("cuda"))


def test_a_cuda_device_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses to limit the memory of one that has none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    names = [str(device.resolve_device(name)) for name in ("auto", "cuda", "cuda:1")]
    assert names == ["cuda:0", "cuda:0", "cuda:1"]
