"""A run of ``bench gpu``: the device, what measures on it, the time that is left, and where the rows go."""

import contextlib
import gc
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ..meters.fresh_process import ProcessError, first_line, is_lack_of_memory
from ..meters.gpu_timer import Budget, Timer
from ..records.environment import Environment
from ..records.rows import BenchRow, Gate, append_rows

# Seconds under which no further measurement starts: compiling and measuring one case takes that long.
_RESERVE = {
    "accuracy": 10, "times": 10, "step": 45, "budgets": 75, "compiled": 30, "pace": 90, "constant": 90, "vram": 120, "peers": 60
}  # fmt: skip
_NO_MODULE = re.compile(r"No module named '([\w.]+)'")


@dataclass(frozen=True, slots=True)
class GpuRun:
    """What every stage needs.

    Attributes:
        device: GPU.
        timer: what measures.
        budget: time that is left.
        folder: where the rows go.
        environment: hardware and versions.
        wrong: stages and measurements that failed or gave a wrong result.
    """

    device: torch.device
    timer: Timer
    budget: Budget
    folder: Path
    environment: Environment
    wrong: list[str] = field(default_factory=list)

    @contextlib.contextmanager
    def contained(self, stage: str, what: str = "", *, is_ours: bool = True) -> Iterator[None]:
        """A measurement whose failure ends nothing else: it is told, kept as a row, and wrong unless it is not ours.

        A lack of memory or of a library, here or in a process of its own, only leaves it out.
        """
        name = f"{stage} {what}".strip()
        try:
            yield
        # A first run on a card meets errors of drivers, compilers and libraries that nobody has listed.
        except Exception as error:
            reason = _obstacle(error)
            if reason is None and is_ours:
                self.note_wrong(stage, name, f"{type(error).__name__}: {first_line(error)}")
            else:
                print(f"{name}: left out, {reason or first_line(error)}", flush=True)
        finally:
            self._release()

    def note_wrong(self, stage: str, name: str, reason: str) -> None:
        """Tell and keep that something failed or is wrong."""
        self.wrong.append(name)
        print(f"{name}: WRONG: {reason}", flush=True)
        row = self.row("failure", stage, "failures", (1.0,), f"FAILED {name}: {reason}")
        append_rows(self.folder / "failures.jsonl", [row])

    def _release(self) -> None:
        """Give freed memory back, so that the next measurement starts with all of it."""
        gc.collect()
        # After an illegal access every call raises, this one too: the measurements to come will say so.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()

    def row(
        self,
        case: str,
        variant: str,
        unit: str,
        values: Sequence[float],
        gate: str,
        shape: tuple[int, ...] = (),
        dtype: torch.dtype = torch.bfloat16,
        precision: str = "",
    ) -> BenchRow:
        """A row of this run; a ``gate`` that begins with FAILED is red."""
        return BenchRow(
            case=case,
            variant=variant,
            shape=shape,
            dtype=str(dtype).removeprefix("torch."),
            precision=precision,
            unit=unit,
            values=tuple(values),
            gate=Gate(is_green=not gate.startswith("FAILED"), text=gate),
            environment=self.environment,
        )

    def has_time(self, stage: str, what: str) -> bool:
        """Whether a measurement of ``stage`` may start; says so if not."""
        if self.budget.seconds_left >= _RESERVE[stage]:
            return True
        print(f"left out, no time: {stage} of {what}", flush=True)
        return False


def _obstacle(error: Exception) -> str | None:
    """What is missing, where ``error`` says that something is; None where something is wrong."""
    if is_lack_of_memory(error):
        return "the GPU has too little memory"
    is_import = isinstance(error, ModuleNotFoundError | ProcessError)
    missing = _NO_MODULE.search(str(error)) if is_import else None
    return missing and f"pip install {missing[1]}"
