"""A device that is absent or too small is named, with what would help."""

from pathlib import Path

import pytest
import torch
from tiny_models import saved_model

from isoframe.engine import BudgetError, DeviceError, Engine, EngineConfig, Request, device
from isoframe.engine.encoders import Encoders
from isoframe.engine.transformer import PackedTransformer, StepPass
from isoframe.engine.vae import VideoVAE


def test_weights_that_cannot_fit_are_refused_before_they_are_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = saved_model(tmp_path / "small")
    num_bytes = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    config = EngineConfig(device="cpu")
    monkeypatch.setattr(device, "memory_bytes", lambda _: num_bytes)
    Engine.load(tmp_path / "small", config=config)
    monkeypatch.setattr(device, "memory_bytes", lambda _: num_bytes - 1)
    monkeypatch.setattr(PackedTransformer, "load", None)
    with pytest.raises(
        BudgetError, match=r"transformer of small needs .* GiB in fp32, cpu has .*--precision bf16"
    ) as caught:
        Engine.load(tmp_path / "small", config=config)
    assert (caught.value.needed, caught.value.available) == (num_bytes, num_bytes - 1)


def test_memory_of_the_cpu_is_that_of_the_machine() -> None:
    assert device.memory_bytes(torch.device("cpu")) > 2**28


@pytest.mark.parametrize(
    ("owner", "method", "message"),
    [
        (Encoders, "encode_prompts", r"phase 'text' \(no room\); use device='cpu'"),
        (VideoVAE, "encode_image", r"phase 'image' \(no room\); use device='cpu'"),
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


def test_cuda_without_triton_is_refused_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    device.check_triton(torch.device("cuda"))
    monkeypatch.setattr(device, "HAS_TRITON", False)
    device.check_triton(torch.device("cpu"))
    with pytest.raises(DeviceError, match="pip install triton"):
        device.check_triton(torch.device("cuda"))
