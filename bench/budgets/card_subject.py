"""What ``bench vram`` is about: a card and who is asked about it."""

import torch

from ...engine.device import resolve_device
from ...engine.errors import ConfigError
from ...engine.families.registry import PUBLISHED_NAME
from ...engine.generation.model_lookup import find_model
from ...engine.planning.machine import described_machine, find_card, this_machine
from ...engine.request.sizes import parse_size
from ..operations.correctness import check_operations
from ..records.rows import Gate, Setting
from .card_predictions import GATE
from .fresh_point import ProcessRunner
from .planner_answers import PlanRunner
from .point import MemoryJob, Runner

DEFAULT_CARD = "RTX 3060"
_DEFAULT_BUDGET = 6 * 2**30
# Of the memory that a card has, as for a budget that nobody chose.
_SHARE = 0.9


class CardSubject:
    """A card, real, held back or only described.

    Attributes:
        runner: who is asked.
        most: bytes of the largest budget.
    """

    def __init__(
        self,
        *,
        model: str | None,
        card: str | None,
        device: str,
        emulate: str | None,
        ram: str | None,
        is_predicted: bool,
    ) -> None:
        """Find out what there is.

        Args:
            model: as ``Engine.load`` takes it; None is the demo where something runs, else the published model.
            card: name of a card to predict for; None is a usual one.
            device: as in ``EngineConfig``; "auto" without a GPU predicts.
            emulate: memory of the card that is emulated, such as "6GiB".
            ram: what the engine may take in RAM.
            is_predicted: ask the planner, whatever there is.

        Raises:
            ConfigError: an emulated card without a real one.
        """
        has_cuda = torch.cuda.is_available()
        self._device = None
        if not is_predicted and (device != "auto" or has_cuda):
            self._device = resolve_device(device)
        self._model = model or (PUBLISHED_NAME if self._device is None else "demo")
        self._known = find_model(self._model)
        self._emulated = None if emulate is None else parse_size("--emulate", emulate)
        self._ram = None if ram is None else parse_size("--ram", ram)
        if self._emulated is not None and (self._device is None or self._device.type != "cuda"):
            raise ConfigError(
                "--emulate caps a larger card, and there is none here; use --card to predict one"
            )
        if self._device is None:
            name = card or DEFAULT_CARD
            machine = described_machine(card=name, vram=None, ram=ram)
            self.most = machine.vram
            self.runner: Runner = PlanRunner(self._known, find_card(name), machine.ram)
            self._card_name = name
        else:
            machine = this_machine(self._device, ram=ram)
            held_back = machine.vram if self._emulated is None else int(self._emulated * _SHARE)
            self.most = min(machine.vram, held_back)
            self.runner = ProcessRunner(is_emulated=self._emulated is not None)
            self._card_name = machine.card.name

    def job(
        self,
        *,
        into: str | None,
        size: tuple[int, int] | None,
        window: int,
        steps: int,
        precision: str | None,
        attention: str,
    ) -> MemoryJob:
        """The job whose ceilings are sought; what is None is the model's or the card's own."""
        is_cpu = self._device is not None and self._device.type == "cpu"
        return MemoryJob(
            model=self._model,
            device="cuda" if self._device is None else str(self._device),
            budget=min(_DEFAULT_BUDGET, self.most) if into is None else parse_size("--into", into),
            ram=self._ram,
            emulated=self._emulated,
            size=size or self._known.buckets[0],
            window=window,
            num_steps=steps,
            precision=precision or ("fp32" if is_cpu else "bf16"),
            attention=attention,
        )

    def gate(self) -> Gate:
        """The check before anything is believed; of a prediction, that nothing ran."""
        if self._device is None:
            return GATE
        gate = check_operations(self._device)
        return Gate(is_green=gate.is_green, text=f"{gate.text}; every point in a fresh process")

    def settings(self) -> dict[str, Setting]:
        """For rows: what is not the job's own."""
        return {"card": self._card_name, "ram": self._ram}
