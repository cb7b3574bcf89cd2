"""``isoframe doctor``: what is wrong is named with its remedy, with and without a card."""

import dataclasses
import errno
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from isoframe.engine.files import temporary_name
from isoframe.engine.interfaces import checkup
from isoframe.engine.interfaces.checkup import (
    Check,
    check_arch,
    check_device_memory,
    check_disk,
    check_driver,
    check_host_memory,
    check_link,
    check_missing_card,
    check_pace,
    check_page_file,
    check_speed,
    check_triton,
    examine,
)
from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.planning import nvml
from isoframe.engine.planning.machine import Machine, find_card
from isoframe.engine.planning.nvml import CardState, read_card
from isoframe.kernels.launching import probe

GIB = 2**30
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
STATE = CardState(
    driver="580.65", cuda=13000, used_bytes=GIB, pcie_generation=1, max_pcie_generation=4, pcie_width=16,
    max_pcie_width=16, power_limit=350_000, power=20_000, clock=210, max_clock=1980, throttles=(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("capability", "arch_list", "status"),
    [
        (86, ["sm_80", "sm_86", "sm_90"], "good"),
        (89, ["sm_80", "sm_86", "sm_90"], "good"),
        (120, ["sm_80", "sm_90"], "problem"),
        (120, ["sm_90", "compute_90"], "good"),
        (90, ["sm_90a"], "good"),
        (80, ["sm_86"], "problem"),
        (75, ["sm_75", "sm_80"], "problem"),
        (86, [], "problem"),
    ],
)
def test_a_card_needs_a_torch_that_was_built_for_it(
    capability: int, arch_list: list[str], status: str
) -> None:
    check = check_arch("a card", capability, arch_list)
    assert check.status == status
    assert bool(check.remedy) == (status == "problem")


@pytest.mark.parametrize(
    ("torch_cuda", "has_driver", "status", "text"),
    [
        (None, False, "note", "no CUDA device"),
        (None, True, "problem", "is a build for the CPU only"),
        ("12.8", True, "problem", "finds no device"),
    ],
)
def test_a_missing_card_is_a_problem_only_where_there_is_one(
    torch_cuda: str | None, has_driver: bool, status: str, text: str
) -> None:
    check = check_missing_card(torch_cuda, has_driver=has_driver)
    assert (check.status, text in check.text, bool(check.remedy)) == (status, True, True)


@pytest.mark.parametrize(
    ("state", "torch_cuda", "status"),
    [
        (STATE, "12.8", "good"),
        (STATE, "13.0", "good"),
        (dataclasses.replace(STATE, cuda=12020), "13.0", "problem"),
        (None, "13.0", "note"),
    ],
)
def test_a_driver_must_run_the_cuda_of_torch(state: CardState | None, torch_cuda: str, status: str) -> None:
    assert check_driver(state, torch_cuda).status == status


def test_half_of_the_lanes_is_noted() -> None:
    assert check_link(STATE).status == "good"
    half = check_link(dataclasses.replace(STATE, pcie_width=8))
    assert (half.status, half.text[:19]) == ("note", "generation 1 x8 now")
    assert "another slot" in half.remedy
    assert check_link(None).status == "note"


def test_what_slows_a_card_down_is_named() -> None:
    assert check_pace(STATE).text == "limit 350 W, clock 210 of 1980 MHz"
    check = check_pace(dataclasses.replace(STATE, throttles=("temperature",)))
    assert (check.status, check.text.endswith("slowed down by temperature")) == ("note", True)


@pytest.mark.parametrize(
    ("check", "status"),
    [
        (check_device_memory(11 * GIB, 12 * GIB), "good"),
        (check_device_memory(6 * GIB, 12 * GIB), "note"),
        (check_host_memory(64 * GIB, 50 * GIB), "good"),
        (check_host_memory(16 * GIB, 7 * GIB), "note"),
        (check_page_file(32 * GIB, 8 * GIB), "good"),
        (check_page_file(32 * GIB, 0), "note"),
        (check_page_file(128 * GIB, 0), "good"),
    ],
)
def test_scarce_memory_comes_with_a_remedy(check: Check, status: str) -> None:
    assert (check.status, bool(check.remedy)) == (status, status == "note")


def test_a_folder_that_does_not_exist_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    check = check_disk("disk of the caches", tmp_path / "a" / "b")
    assert check.status == "good"
    assert str(tmp_path / "a" / "b") in check.text


def test_expected_pace_comes_from_the_planner() -> None:
    machine = Machine(vram=10 * GIB, ram=48 * GIB, card=find_card("RTX 3080"))
    in_bf16, in_int8 = check_speed(machine)
    assert in_bf16.name == "expected in bf16"
    assert "s/it" in in_bf16.text
    assert float(in_int8.text.split()[0]) < float(in_bf16.text.split()[0])
    refused, _ = check_speed(dataclasses.replace(machine, vram=GIB))
    assert (refused.status, refused.remedy) == ("note", "see isoframe plan")


@pytest.mark.skipif("not probe.HAS_TRITON")
def test_triton_compiles_without_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert check_triton(CPU).status == "good"

    def fail(arch: int) -> None:
        raise RuntimeError("a long story\nptxas: no such file")

    monkeypatch.setattr(probe, "_compile", fail)
    check = check_triton(CPU)
    assert (check.status, check.text) == ("note", "RuntimeError: ptxas: no such file")
    assert "C compiler" in check.remedy


def test_missing_triton_is_a_problem_on_a_card_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "HAS_TRITON", False)
    monkeypatch.setattr(checkup, "HAS_TRITON", False)
    monkeypatch.setattr(checkup, "device_capability", lambda device: 86)
    for device, status in ((CPU, "note"), (CUDA, "problem")):
        check = check_triton(device)
        assert (check.status, check.text) == (status, "Triton is not installed")
        assert check.remedy.startswith("pip install triton")


def test_everything_is_examined_without_a_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkup.shutil, "which", lambda name: None)
    checks = {check.name: check for check in examine(CPU, tmp_path)}
    assert [*checks] == [
        "software", "card", "Triton", "attention", "video", "RAM", "page file", "disk of the models",
        "disk of the caches", "expected of the demo",
    ]  # fmt: skip
    assert "s/it on the CPU at 64x64" in checks["expected of the demo"].text
    assert "problem" not in {check.status for check in checks.values()}
    assert checks["attention"].text.startswith("sdpa: torch's own, on the CPU")
    assert all(check.remedy for check in checks.values() if check.status == "note")


def run(monkeypatch: pytest.MonkeyPatch, checks: list[Check], *arguments: str) -> Any:
    def examine(device: torch.device, cache_dir: Path) -> Iterator[Check]:
        yield from checks

    monkeypatch.setattr(checkup, "examine", examine)
    return CliRunner().invoke(build_app(), ["doctor", "--device", "cpu", *arguments])


GOOD = Check(name="RAM", status="good", text="64 GiB")
NOTE = Check(name="page file", status="note", text="none", remedy="add one")
PROBLEM = Check(name="driver", status="problem", text="[old]", remedy="install a newer one")


@pytest.mark.parametrize(
    ("checks", "exit_code", "last"),
    [([GOOD, NOTE], 0, "no problem found"), ([GOOD, PROBLEM, NOTE], 1, "1 to be solved: driver")],
)
def test_exit_code_tells(
    monkeypatch: pytest.MonkeyPatch, checks: list[Check], exit_code: int, last: str
) -> None:
    result = run(monkeypatch, checks)
    assert result.exit_code == exit_code
    assert result.stdout.splitlines()[-1].startswith(last)
    assert all(check.remedy in result.stdout and check.text in result.stdout for check in checks)
    result = run(monkeypatch, checks, "--json")
    assert result.exit_code == exit_code
    assert json.loads(result.stdout) == [dataclasses.asdict(check) for check in checks]


class FakeNvml(SimpleNamespace):
    """A driver that leaves some questions open."""

    class NVMLError(Exception):  # its real name
        pass

    NVML_CLOCK_SM = 1

    def nvmlInit(self) -> None:  # noqa: N802
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_open = False

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        return uuid

    def __getattr__(self, name: str) -> Any:
        answers: dict[str, Any] = {
            "nvmlSystemGetDriverVersion": "580.65",
            "nvmlSystemGetCudaDriverVersion": 13000,
            "nvmlDeviceGetMemoryInfo": SimpleNamespace(used=5),
            "nvmlDeviceGetCurrPcieLinkWidth": 8,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x44,
        }

        def answer(*arguments: object) -> Any:
            if name in answers:
                return answers[name]
            raise self.NVMLError("not supported")

        return answer


@pytest.fixture
def uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-34"))


@pytest.mark.usefixtures("uuid")
def test_driver_is_asked_and_may_leave_questions_open(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]  # a stand-in
    state = read_card(CUDA)
    assert state is not None
    assert (state.driver, state.used_bytes, state.pcie_width, state.power_limit) == ("580.65", 5, 8, None)
    assert state.throttles == ("power limit", "temperature")
    assert not fake.is_open
    assert check_link(state).status == "note"


@pytest.mark.usefixtures("uuid")
def test_without_nvml_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert nvml.read_card(CUDA) is None


@pytest.mark.usefixtures("uuid")
def test_a_driver_that_does_not_answer_is_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeNvml()

    def fail() -> None:
        raise fake.NVMLError("driver not loaded")

    fake.nvmlInit = fail  # type: ignore[method-assign]
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]  # a stand-in
    assert read_card(CUDA) is None


@pytest.mark.usefixtures("uuid")
@pytest.mark.parametrize(("offset", "expected"), [(0, 7), (2, None)])
def test_memory_of_this_process_is_told_where_the_driver_knows_it(
    monkeypatch: pytest.MonkeyPatch, offset: int, expected: int | None
) -> None:
    fake = FakeNvml()
    others = SimpleNamespace(pid=os.getpid() + 1, usedGpuMemory=99)
    mine = SimpleNamespace(pid=os.getpid() + offset, usedGpuMemory=7)
    fake.nvmlDeviceGetComputeRunningProcesses = lambda _: [others, mine]
    monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type]  # a stand-in
    assert nvml.process_bytes(CUDA) == expected


def test_what_killed_runs_left_is_removed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, cache, temporary = (tmp_path / name for name in ("here", "cache", "temporary"))
    for folder in (here, cache / "embeddings", temporary / "isoframe-old", temporary / "isoframe-new"):
        folder.mkdir(parents=True)
    os.utime(temporary / "isoframe-old", (0, 0))
    left = [
        folder / temporary_name("a.mp4", "0123abcd") for folder in (here, cache / "embeddings", temporary)
    ]
    kept = [here / "a.mp4", cache / "embeddings" / "b.safetensors", temporary / "isoframe-0123abcd.mp4"]
    for path in (*left, *kept):
        path.write_bytes(b"")
    monkeypatch.chdir(here)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    answer = run(monkeypatch, [], "--clean", "--cache-dir", str(cache))
    assert answer.exit_code == 0
    gone = [*left, temporary / "isoframe-old"]
    assert sorted(answer.stdout.splitlines()) == sorted(f"removed {path}" for path in gone)
    assert not any(path.exists() for path in gone)
    assert all(path.exists() for path in (*kept, temporary / "isoframe-new"))


def test_a_folder_that_cannot_be_written_is_no_good_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    for name, status, remedy in (
        ("disk of the caches", "problem", "--cache-dir"),
        ("disk of the models", "note", "HF_HOME"),
    ):
        check = check_disk(name, tmp_path / "a")
        assert check.status == status
        assert "Read-only file system" in check.text
        assert remedy in check.remedy
