"""Results as rows: one measured quantity with everything needed to judge and to repeat it.

A file of rows is JSON Lines; ``data/row.json`` is the schema of a line.
"""

import dataclasses
import json
import math
import os
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self

from ...engine.errors import InputError
from .environment import Environment, read_environment, read_load
from .row_schema import find_violations, load_schema

VERSION = 2
Basis = Literal["measured", "predicted", "emulated"]
Setting = str | int | float | bool | None
_PRECISIONS = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def this_command() -> str:
    """The command line of this process, without folders of the machine."""
    program = Path(sys.argv[0])
    name = "python -P -m isoframe.bench" if program.name == "__main__.py" else program.stem
    arguments = [Path(part).name if Path(part).is_absolute() else part for part in sys.argv[1:]]
    return shlex.join([*name.split(), *arguments])


def now() -> str:
    """The present second in UTC, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def this_environment() -> Environment:
    """This machine and its software, which are asked for once, and its load now."""
    return replace(_environment(), load=read_load())


@cache
def _environment() -> Environment:
    return read_environment()


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The correctness check that came before a measurement.

    Attributes:
        is_green: whether it passed; a figure behind a red gate is no result.
        text: what was compared, with its figures.
    """

    is_green: bool
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchRow:
    """One quantity of one variant of one case.

    Attributes:
        case: what was run.
        variant: which implementation or setting.
        shape: sizes that matter for the case.
        dtype: of weights and activations.
        precision: of the model, as in ``EngineConfig``; where not given, the one of ``dtype``.
        unit: of the values, such as "s", "ratio" or "MiB".
        values: every measured value; one if only a median is kept.
        basis: "measured" on this hardware, "predicted" by a model of it, or "emulated": measured on other hardware
            that was held back.
        gate: the correctness check that came before the measurement.
        settings: what else was chosen, by name: size, steps, attention, step cache, budget.
        environment: hardware and versions; where not given, of this process.
        command: what was typed.
        date: UTC, ISO 8601.
    """

    case: str
    variant: str
    shape: tuple[int, ...] = ()
    dtype: str
    precision: str = ""
    unit: str
    values: tuple[float, ...]
    basis: Basis = "measured"
    gate: Gate
    settings: Mapping[str, Setting] = field(default_factory=dict)
    environment: Environment = field(default_factory=this_environment)
    command: str = field(default_factory=this_command)
    date: str = field(default_factory=now)

    def __post_init__(self) -> None:
        if not self.values or not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"values of {self.case} must be at least one finite number, got {self.values}")
        if not self.precision:
            object.__setattr__(self, "precision", _PRECISIONS.get(self.dtype, self.dtype))

    @property
    def median(self) -> float:
        """Median of the values."""
        return statistics.median(self.values)

    @property
    def key(self) -> tuple[object, ...]:
        """What two rows must share to be the same quantity, measured twice."""
        settings = tuple(sorted(self.settings.items()))
        return self.case, self.variant, self.shape, self.precision, self.unit, self.basis, settings

    def to_json(self) -> str:
        """The row as one line, with its median.

        Raises:
            ValueError: hardware, a version or something else that the schema asks for is missing.
        """
        values = {"version": VERSION, **dataclasses.asdict(self), "median": self.median}
        # Tuples become lists: what is checked is what is written.
        content = json.loads(json.dumps(values))
        _check(content, f"the row {self.case} {self.variant}")
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: the text is no JSON or breaks the schema.
        """
        content = json.loads(text)
        _check(content, "the row")
        del content["version"], content["median"]
        content |= {
            "shape": tuple(content["shape"]),
            "values": tuple(content["values"]),
            "gate": Gate(**content["gate"]),
            "environment": Environment.from_dict(content["environment"]),
        }
        return cls(**content)


def make_rows(quantities: Iterable[tuple[str, str, str, Sequence[float]]], **shared: Any) -> list[BenchRow]:
    """A row for each (case, variant, unit, values) of ``quantities``; ``shared`` are the other fields of all."""
    return [
        BenchRow(case=case, variant=variant, unit=unit, values=tuple(map(float, values)), **shared)
        for case, variant, unit, values in quantities
    ]


def activation_dtype(precision: str, device: str) -> str:
    """Name of the dtype that a model in ``precision`` computes in on ``device``, as far as no other is asked for."""
    names = {precision: name for name, precision in _PRECISIONS.items()}
    return names.get(precision, "float32" if device == "cpu" else "bfloat16")


def in_words(size: Sequence[int]) -> str:
    """(height, width) as "640x608"."""
    return "x".join(map(str, size))


def append_rows(path: str | os.PathLike[str], rows: Iterable[BenchRow]) -> None:
    """Append ``rows`` to a file of JSON lines; file and folder are created.

    Raises:
        ValueError: a row lacks what the schema asks for; nothing is written then.
    """
    lines = [row.to_json() + "\n" for row in rows]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)


def read_rows(path: str | os.PathLike[str]) -> list[BenchRow]:
    """The rows of a file of JSON lines.

    Raises:
        InputError: the file cannot be read or a line is no valid row.
    """
    rows = []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} must be a file of results (isoframe bench ... --json): {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(BenchRow.from_json(line))
        except ValueError as error:
            raise InputError(f"{path}, line {number} is no result: {error}") from error
    return rows


def _check(content: Any, name: str) -> None:
    violations = list(find_violations(content, load_schema()))
    if violations:
        raise ValueError(f"{name} does not fit schema version {VERSION}: {'; '.join(violations)}")
