"""Results as rows: one measured quantity with everything needed to judge and to repeat it."""

import dataclasses
import json
import math
import os
import shlex
import statistics
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .environment import Environment


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One quantity of one variant of one case.

    Attributes:
        case: what was run.
        variant: which implementation or setting.
        shape: sizes that matter for the case.
        dtype: of weights and activations.
        unit: of the values, such as "s", "ratio" or "MiB".
        values: every measured value; one if only a median is kept.
        gate: the correctness check that came before the measurement, with its figures.
        environment: hardware and versions.
        command: what was typed.
        date: UTC, ISO 8601.
    """

    case: str
    variant: str
    shape: tuple[int, ...]
    dtype: str
    unit: str
    values: tuple[float, ...]
    gate: str
    environment: Environment
    command: str
    date: str

    def __post_init__(self) -> None:
        if not self.values or not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"values of {self.case} must be at least one finite number, got {self.values}")

    @property
    def median(self) -> float:
        """Median of the values."""
        return statistics.median(self.values)

    def to_json(self) -> str:
        """The row as one line, with its median."""
        return json.dumps(dataclasses.asdict(self) | {"median": self.median})


def append_rows(path: str | os.PathLike[str], rows: Iterable[BenchRow]) -> None:
    """Append ``rows`` to a file of JSON lines; file and folder are created."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(row.to_json() + "\n" for row in rows)


def this_command() -> str:
    """The command line of this process, without folders of the machine."""
    program = Path(sys.argv[0])
    name = "python -P -m isoframe.bench" if program.name == "__main__.py" else program.stem
    return shlex.join([*name.split(), *sys.argv[1:]])


def now() -> str:
    """The present second in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
