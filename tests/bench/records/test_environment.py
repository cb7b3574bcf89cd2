import platform
from pathlib import Path

import pytest
import torch

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


def test_without_nvidia_tools_there_is_no_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert read_environment().driver is None
