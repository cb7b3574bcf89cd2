import platform
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from bench_rows import ROW

from isoframe.bench.records import environment
from isoframe.bench.records.environment import read_environment


def test_names_this_machine_and_its_versions() -> None:
    found = read_environment()
    assert found.torch == torch.__version__
    assert found.python == platform.python_version()
    assert found.cpu
    assert 1 <= found.num_cores <= 4096
    assert found.ram_bytes > 2**28
    assert found.load is None or found.load >= 0
    assert (found.gpu is None) == (not torch.cuda.is_available())


def test_outside_a_checkout_there_is_no_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    monkeypatch.delenv("ISOFRAME_COMMIT", raising=False)
    assert read_environment().commit is None


def test_a_copy_of_a_checkout_may_be_told_its_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment, "_ROOT", tmp_path)
    monkeypatch.setenv("ISOFRAME_COMMIT", "0123abcd")
    assert read_environment().commit == "0123abcd"


@pytest.mark.parametrize(
    ("card", "cuda", "expected"),
    [("580.1", 13000, "580.1"), (None, 12040, "CUDA 12.4"), (None, 0, "unknown")],
    ids=["NVML", "torch", "none"],
)
def test_a_gpu_without_nvidia_smi_has_a_driver_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, card: str | None, cuda: int, expected: str
) -> None:
    properties = SimpleNamespace(name="a card", total_memory=2**33)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(environment, "read_card", lambda _: card and SimpleNamespace(driver=card))
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: cuda, raising=False)
    found = read_environment()
    assert found.driver == expected
    assert replace(ROW, environment=found).environment.driver == expected


def test_a_tool_that_hangs_costs_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 30)

    monkeypatch.setattr(subprocess, "run", hang)
    assert read_environment().commit is None


def test_without_a_gpu_there_is_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert read_environment().driver is None
