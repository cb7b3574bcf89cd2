"""The folder of one training: a loss log that grows, and a checkpoint to resume from."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from isoframe.engine.errors import InputError
from train_demo.optimizer import MuonAdam


class Averages:
    """Exponential moving averages of named tensors, warmed up so that the start is forgotten."""

    def __init__(self, tensors: Mapping[str, Tensor], *, decay: float) -> None:
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        self._decay = decay

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], step: int) -> None:
        """Move towards ``tensors``; ``step`` counts from 1."""
        decay = min(self._decay, (1 + step) / (20 + step))
        names = list(self.tensors)
        torch._foreach_lerp_(
            [self.tensors[name] for name in names], [tensors[name].detach() for name in names], 1 - decay
        )


class TrainingRun:
    """Log and checkpoint of a training that counts steps.

    Args:
        folder: where ``losses.jsonl`` and ``checkpoint.pt`` live; created.
        is_resumed: continue from the checkpoint in ``folder``; otherwise an existing log is an error.
        log_every: steps between two lines of the log; a line holds the means since the last one.
        save_every: steps between two checkpoints.
    """

    def __init__(
        self, folder: Path, *, is_resumed: bool = False, log_every: int = 25, save_every: int = 500
    ) -> None:
        self.folder = folder
        self._log_every = log_every
        self._save_every = save_every
        self._losses: dict[str, list[float]] = {}
        self._started = time.monotonic()
        if self.log_path.exists() and not is_resumed:
            raise InputError(f"folder {folder} holds a training already: resume it or name another folder")
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def log_path(self) -> Path:
        """One JSON object a line: step, seconds of this process, and means of the losses."""
        return self.folder / "losses.jsonl"

    @property
    def checkpoint_path(self) -> Path:
        """The newest checkpoint."""
        return self.folder / "checkpoint.pt"

    def restore(self, model: nn.Module, averages: Averages, optimizer: MuonAdam) -> int:
        """Load the newest checkpoint, if there is one; returns the steps done. Later log lines are dropped."""
        if not self.checkpoint_path.exists():
            return 0
        state: dict[str, Any] = torch.load(self.checkpoint_path, weights_only=True)
        model.load_state_dict(state["model"])
        averages.tensors = state["averages"]
        optimizer.load_state_dict(state["optimizer"])
        lines = self.log_path.read_text().splitlines() if self.log_path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= state["step"]]
        self.log_path.write_text("".join(line + "\n" for line in kept))
        return int(state["step"])

    def record(self, step: int, losses: Mapping[str, float]) -> None:
        """Note the losses of ``step``, counted from 1."""
        for name, value in losses.items():
            self._losses.setdefault(name, []).append(value)
        if step % self._log_every:
            return
        means = {name: round(sum(values) / len(values), 6) for name, values in self._losses.items()}
        seconds = round(time.monotonic() - self._started, 1)
        with self.log_path.open("a") as log:
            log.write(json.dumps({"step": step, "seconds": seconds, **means}) + "\n")
        self._losses.clear()

    def is_save_due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after ``step``."""
        return step % self._save_every == 0

    def save(self, step: int, model: nn.Module, averages: Averages, optimizer: MuonAdam) -> None:
        """Replace the checkpoint; a crash while writing leaves the old one."""
        state = {
            "step": step,
            "model": model.state_dict(),
            "averages": averages.tensors,
            "optimizer": optimizer.state_dict(),
        }
        partial = self.checkpoint_path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint_path)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The randomness of one step, so that a resumed training draws what an unbroken one draws."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)
