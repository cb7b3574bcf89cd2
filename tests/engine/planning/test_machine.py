"""The machine that a plan is made for: budgets in what it has."""

import psutil
import pytest
import torch

from isoframe.engine import ConfigError, EngineConfig
from isoframe.engine.planning.machine import described_machine, this_machine, with_budget

GIB = 2**30
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """An RTX 3060 Laptop with 4.5 of 6 GiB free; this process has reserved another GiB, half of it for tensors."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (9 * GIB // 2, 6 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: GIB // 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA GeForce RTX 3060 Laptop GPU")


@pytest.mark.usefixtures("card")
def test_a_card_gives_nine_tenths_of_what_is_free_or_what_is_asked_for() -> None:
    assert this_machine(CUDA).vram == int(5 * GIB * 0.9)
    machine = this_machine(CUDA, vram="4GiB", ram="1GiB")
    assert (machine.vram, machine.ram, machine.card.name) == (7 * GIB // 2, GIB, "RTX 3060 Laptop")
    assert described_machine(card=None, vram="4GiB", ram="1GiB") == machine


@pytest.mark.usefixtures("card")
def test_more_than_the_card_has_is_refused_with_what_it_has() -> None:
    with pytest.raises(ConfigError, match=r"vram must be at most the 6\.00 GiB that cuda has"):
        this_machine(CUDA, vram="8GiB")


@pytest.mark.usefixtures("card")
def test_a_budget_that_other_engines_fill_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"vram must be more than the 1\.00 GiB that this process takes"):
        this_machine(CUDA, vram="1GiB")


@pytest.mark.usefixtures("card")
def test_another_budget_leaves_others_what_they_hold() -> None:
    machine = this_machine(CUDA, vram="4GiB", ram="1GiB")
    assert with_budget(machine, CUDA, vram="5GiB", held=GIB // 2).vram == 9 * GIB // 2
    assert with_budget(machine, CUDA, ram="2GiB", held=GIB // 2).vram == machine.vram
    with pytest.raises(ConfigError, match=r"vram must be more than the 1\.00 GiB that this process takes"):
        with_budget(machine, CUDA, vram="1GiB", held=GIB // 2)


def test_more_than_the_machine_has_is_refused_with_what_it_has() -> None:
    total = psutil.virtual_memory().total
    with pytest.raises(ConfigError, match=r"ram must be at most the .* that this machine has"):
        this_machine(CPU, ram=total + 1)
    assert this_machine(CPU, ram=total).ram == total


def test_the_cpu_has_one_budget_in_ram() -> None:
    machine = this_machine(CPU, ram="1GiB")
    assert machine.is_cpu
    assert machine.vram == machine.ram == GIB
    assert machine.context == 0
    assert machine.card.is_estimate
    assert 0 < this_machine(CPU).ram < psutil.virtual_memory().total
    with pytest.raises(ConfigError, match="vram must be left out on device 'cpu'"):
        this_machine(CPU, vram="1GiB")


def test_a_described_machine_needs_no_card_here() -> None:
    machine = described_machine(card="rtx 4090", vram=None, ram="999GiB")
    assert machine.vram == int(24 * GIB * 0.9)
    assert machine.ram == 999 * GIB


@pytest.mark.parametrize(("field", "size"), [("vram", "much"), ("ram", -1), ("vram", 0), ("ram", True)])
def test_a_configuration_refuses_what_is_no_size(field: str, size: object) -> None:
    with pytest.raises(ConfigError, match=f"{field} must be a positive size"):
        EngineConfig(**{field: size})  # type: ignore[arg-type]  # that is the point
    assert EngineConfig(vram="6GiB", ram=2**30).vram == "6GiB"
