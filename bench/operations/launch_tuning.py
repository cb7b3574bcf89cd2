"""Launch settings measured on the present GPU, starting from the shipped ones.

Coordinate descent: tiles and warps are halved and doubled, stages move by one, one at a time, and the fastest neighbour
is taken until none is faster. A candidate is tried only if it passes the gates of ahead-of-time compilation, and counts
only if its results are those of the shipped settings.
"""

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...engine.errors import ConfigError, DeviceError
from ...engine.model.attention_backends import device_capability
from ...kernels import KERNELS
from ...kernels.launching.launch import Settings, override_settings
from ..meters.accuracy import find_errors, run
from ..meters.gpu_timer import Budget, CudaTimer, Timer, measure
from .compiled_kernels import compile_pair, record_spec
from .timed_kernels import KernelCase

# Other settings are flags, with a meaning of their own on each architecture.
_TILES = ("BLOCK", "GROUP", "HEADS")
_MAX_TILE = 4096
_MAX_WARPS, _MAX_STAGES = 16, 6
# A neighbour must be faster by this much: less is noise.
_MIN_GAIN = 0.02

# Seconds that a candidate takes, None if it cannot count.
Measure = Callable[[Settings], float | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The search for one name of settings.

    Attributes:
        name: as kernels ask for it.
        shipped: where the search started.
        shipped_seconds: of all cases together.
        best: the fastest that was found.
        best_seconds: of all cases together.
        num_tried: candidates that were measured.
    """

    name: str
    shipped: Settings
    shipped_seconds: float
    best: Settings
    best_seconds: float
    num_tried: int


def neighbours(settings: Settings) -> Iterator[Settings]:
    """Settings that differ in one value by one step; those that no kernel could take are left out."""
    for key, value in settings.items():
        if key == "num_stages":
            steps = [step for step in (value - 1, value + 1) if 1 <= step <= _MAX_STAGES]
        elif key == "num_warps":
            steps = [step for step in (value // 2, value * 2) if 1 <= step <= _MAX_WARPS]
        elif key.startswith(_TILES):
            steps = [step for step in (value // 2, value * 2) if 1 <= step <= _MAX_TILE]
        else:
            continue
        yield from ({**settings, key: step} for step in steps)


def settings_users(arch: int) -> dict[str, tuple[Settings, list[KernelCase]]]:
    """For each name of settings the shipped ones on ``arch``, and one case of every operation that asks for it."""
    users: dict[str, tuple[Settings, list[KernelCase]]] = {}
    for spec in KERNELS.values():
        if arch < min(spec.archs):
            continue
        for name, found in record_spec(spec, arch).settings.items():
            cases = [KernelCase(spec=spec, shape=shape) for shape in spec.bench_shapes]
            users.setdefault(name, (found, []))[1].extend(cases)
    return users


def passes_gates(name: str, settings: Settings, cases: Sequence[KernelCase], arch: int) -> bool:
    """Whether every operation of ``cases`` compiles for ``arch`` within the limits."""
    specs = {case.spec.name: case.spec for case in cases}
    with override_settings({name: settings}):
        return not any(compile_pair(spec, arch).failures for spec in specs.values())


def search(
    name: str, shipped: Settings, measure_settings: Measure, is_admissible: Callable[[Settings], bool]
) -> Tuning:
    """Descend from ``shipped`` to settings that no neighbour beats.

    Args:
        name: of the settings.
        shipped: where to start.
        measure_settings: seconds of settings; None if they are wrong, or if the time is up.
        is_admissible: whether settings are worth measuring.

    Raises:
        DeviceError: the shipped settings cannot be measured.
    """
    shipped_seconds = measure_settings(shipped)
    if shipped_seconds is None:
        raise DeviceError(f"the shipped settings of {name} cannot be measured; give it more --minutes")
    tried = {_key(shipped)}
    best, best_seconds = shipped, shipped_seconds
    while True:
        rivals = [rival for rival in neighbours(best) if _key(rival) not in tried]
        tried |= {_key(rival) for rival in rivals}
        measured = [
            (seconds, rival)
            for rival in rivals
            if is_admissible(rival) and (seconds := measure_settings(rival))
        ]
        if not measured or min(measured, key=_seconds)[0] > best_seconds * (1 - _MIN_GAIN):
            break
        best_seconds, best = min(measured, key=_seconds)
    return Tuning(
        name=name,
        shipped=shipped,
        shipped_seconds=shipped_seconds,
        best=best,
        best_seconds=best_seconds,
        num_tried=len(tried),
    )


def tune(names: Sequence[str], minutes: float) -> Iterator[Tuning]:
    """Search the settings ``names``, all if it is empty, on CUDA device 0; the names share the time.

    Raises:
        DeviceError: there is no CUDA device.
        ConfigError: no kernel asks for one of the names.
    """
    if not torch.cuda.is_available():
        raise DeviceError(
            "bench tune needs a CUDA device, found none; the shipped settings need no tuning to run"
        )
    device = torch.device("cuda", 0)
    arch = device_capability(device)
    users = settings_users(arch)
    for name in names:
        if name not in users:
            raise ConfigError(f"--kernel must be one of {', '.join(users)}, got {name!r}")
    chosen = list(names) or list(users)
    timer = CudaTimer()
    with torch.inference_mode():
        for name in chosen:
            shipped, cases = users[name]
            trial = Trial(name, cases, device, timer, Budget(60 * minutes / len(chosen), time.monotonic))
            yield search(name, shipped, trial.seconds, lambda rival: passes_gates(name, rival, cases, arch))  # noqa: B023


class Trial:
    """Measures settings of one name by the operations that use them."""

    def __init__(
        self, name: str, cases: Sequence[KernelCase], device: torch.device, timer: Timer, budget: Budget
    ) -> None:
        """Draw the inputs and keep what the shipped settings make of them."""
        self._name = name
        self._timer = timer
        self._budget = budget
        self._cases = [(case, case.draw(device)) for case in cases]
        self._expected = [run(case.spec.op, args, case.spec.mutates) for case, args in self._cases]

    def seconds(self, settings: Settings) -> float | None:
        """Sum of the median times of all cases; None for a wrong result, or without time left."""
        from triton.errors import TritonError

        if self._budget.seconds_left <= 0:
            return None
        with override_settings({self._name: settings}):
            try:
                return sum(self._case_seconds(i) for i in range(len(self._cases)))
            # More registers or memory than this device has, or results that differ.
            except (TritonError, RuntimeError, ArithmeticError):
                return None

    def _case_seconds(self, index: int) -> float:
        case, args = self._cases[index]
        actual = run(case.spec.op, args, case.spec.mutates)
        if find_errors(case.spec, case.dtype, actual, self._expected[index]):
            raise ArithmeticError(f"other results with these settings of {self._name}")
        times = measure(self._timer, [lambda: case.spec.op(*args)], is_cold=True)
        return statistics.median(times)


def write_settings(path: Path, arch: int, tunings: Sequence[Tuning]) -> None:
    """Write the best settings for ``arch`` to ``path``, beside what the file already holds for others."""
    table: dict[str, dict[str, Mapping[str, int]]] = {}
    if path.exists():
        table = json.loads(path.read_text(encoding="utf-8"))
    for tuning in tunings:
        table.setdefault(tuning.name, {})[str(arch)] = dict(tuning.best)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def _key(settings: Settings) -> tuple[tuple[str, int], ...]:
    return tuple(sorted(settings.items()))


def _seconds(measured: tuple[float, Settings]) -> float:
    return measured[0]
