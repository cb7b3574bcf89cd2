"""Which attention a job uses: the named one, or the fastest on this device at the job's shape."""

import json
import logging
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor

from ..device import is_out_of_memory
from ..errors import DeviceError
from ..files import cache_key, parse_json, write_durably
from ..request.config import ATTENTIONS, check_choice
from .attention import INT8_REQUIREMENTS, BlockRows, FloatAttention, Int8Attention, SelfAttention
from .attention_backends import BACKENDS, AttentionShape, Exactness, Obstacle, device_capability

_logger = logging.getLogger(__name__)

# A choice holds for token counts up to the next multiple: a longer prompt must not cost a new measurement.
_TOKEN_STEP = 1024
_PACKAGES = ("isoframe", "torch", "triton", "flash-attn", "flash-attn-3", "sageattention", "xformers")
# Largest relative RMS difference from the first candidate on random rows; more means a broken kernel.
_MAX_DIFFERENCE: dict[Exactness, float] = {"exact": 0.02, "rounding": 0.02, "approximate": 0.1}


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One attention that "auto" may choose.

    Attributes:
        exactness: "approximate" ones are admitted where the job computes in 8 bit anyway.
        obstacle: why it cannot run a shape on a device, or None.
        make: a fresh state.
    """

    exactness: Exactness
    obstacle: Obstacle
    make: Callable[[], SelfAttention]


Candidates = Mapping[str, Candidate]
# Seconds that one call takes on the device.
Measure = Callable[[Callable[[], object]], float]

CANDIDATES: dict[str, Candidate] = {
    name: Candidate(
        exactness=backend.exactness, obstacle=backend.obstacle, make=partial(FloatAttention, backend)
    )
    for name, backend in BACKENDS.items()
} | {
    needs.name: Candidate(
        exactness=Int8Attention.exactness, obstacle=needs.obstacle, make=partial(Int8Attention, needs.name)
    )
    for needs in INT8_REQUIREMENTS
}


def cuda_seconds(call: Callable[[], object]) -> float:
    """Median of five calls on the current CUDA device, after two that warm up."""
    times: list[float] = []
    for index in range(7):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        if index >= 2:
            times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionChoice:
    """What decides which attention the jobs of a model have; nothing is measured before a job has a shape.

    Attributes:
        name: one of :data:`ATTENTIONS`; "auto" is torch's on the CPU, and :meth:`fastest` on CUDA.
        precision: of the model.
        device: where it computes.
        cache_dir: folder of measured choices; created when there is one to write.
        candidates: of which "auto" takes one, by name; approximate ones only where ``precision`` is "int8".
    """

    name: str
    precision: str
    device: torch.device
    cache_dir: Path
    candidates: Candidates = field(default_factory=lambda: CANDIDATES)

    def make(self, shape: AttentionShape) -> SelfAttention:
        """The attention of a job of ``shape``, checked before anything is allocated; errors as for :meth:`check`."""
        return self.candidates[self.settle(shape, cuda_seconds)].make()

    def settle(self, shape: AttentionShape, measure: Measure | None = None) -> str:
        """The name of what :meth:`make` gives; without ``measure`` "auto" where it is not measured yet."""
        self.check(shape)
        if self.name != "auto":
            return self.name
        if self.device.type != "cuda":
            return "sdpa"
        return self.fastest(shape, measure)

    def check(self, shape: AttentionShape) -> None:
        """Refuse what :meth:`make` would refuse, and measure nothing.

        Raises:
            ConfigError: there is no such attention.
            DeviceError: it cannot run here; the message says what would.
        """
        check_choice("attention", self.name, ATTENTIONS)
        if self.name == "auto":
            self._admitted(shape)
        elif (obstacle := self.candidates[self.name].obstacle(shape, self.device)) is not None:
            raise DeviceError(obstacle)

    def fastest(self, shape: AttentionShape, measure: Measure | None) -> str:
        """Name of the fastest candidate: timed once for a device, its software and a shape, then read from the disk.

        Without ``measure`` it is "auto" where nothing was timed before.

        Raises:
            DeviceError: none runs here; the message says what would.
        """
        admitted = self._admitted(shape)
        if len(admitted) == 1:
            (name,) = admitted
            _logger.info("attention: %s, the only one available", name)
            return name
        path = self.cache_dir / "attention" / f"{_key(admitted, self.device, shape)}.json"
        seconds, origin = _read(path, admitted), "measured before"
        if seconds is None:
            if measure is None:
                return "auto"
            seconds, is_lasting = _measure_all(admitted, self.device, shape, measure)
            origin = "measured now"
            if is_lasting:
                _write(path, seconds)
            # The trial's memory must not stay with the allocator while the job's is planned.
            torch.cuda.empty_cache()
        name = min(seconds, key=seconds.__getitem__)
        figures = ", ".join(f"{other} {1e3 * seconds[other]:.2f} ms" for other in sorted(seconds))
        _logger.info("attention: %s for %d tokens (%s: %s)", name, shape.num_tokens, origin, figures)
        return name

    def _admitted(self, shape: AttentionShape) -> dict[str, Candidate]:
        admitted, obstacles = {}, []
        for name, candidate in self.candidates.items():
            if candidate.exactness == "approximate" and self.precision != "int8":
                continue
            obstacle = candidate.obstacle(shape, self.device)
            if obstacle is None:
                admitted[name] = candidate
            else:
                _logger.debug("%s", obstacle)
                obstacles.append(obstacle)
        if not admitted:
            raise DeviceError(obstacles[0])
        return admitted


def _key(admitted: Candidates, device: torch.device, shape: AttentionShape) -> str:
    is_cuda = device.type == "cuda"
    return cache_key(
        device=torch.cuda.get_device_name(device) if is_cuda else "cpu",
        capability=device_capability(device) if is_cuda else None,
        versions={package: _version(package) for package in _PACKAGES},
        tokens=-(-shape.num_tokens // _TOKEN_STEP),
        heads=[shape.num_heads, shape.head_dim],
        dtype=str(shape.dtype),
        candidates=sorted(admitted),
    )


def _version(package: str) -> str | None:
    if package == "torch":
        # The distribution's version does not tell a CUDA build from a CPU one.
        return torch.__version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _measure_all(
    admitted: Candidates, device: torch.device, shape: AttentionShape, measure: Measure
) -> tuple[dict[str, float], bool]:
    """Seconds of every candidate that runs and agrees with the first one that does; whether they hold another time.

    They do not where one lacked memory, of which there may be more then.
    """
    trial = _trial(shape, device)
    expected: Tensor | None = None
    seconds: dict[str, float] = {}
    is_lasting = True
    for name, candidate in admitted.items():
        attention = candidate.make()
        try:
            with torch.cuda.device_of(trial.qkv):
                attention.attend(trial)
                result = trial.out.clone()
                duration = measure(partial(attention.attend, trial))
        # Libraries and Triton's compiler refuse a card or lack memory in their own ways (TritonError is neither a
        # RuntimeError nor a ValueError); the other candidates may still run.
        except Exception as error:
            _logger.warning("attention: %s is left out, it fails here: %s", name, error)
            is_lasting = is_lasting and not is_out_of_memory(error)
            continue
        expected = result if expected is None else expected
        difference = _relative_rms(result, expected)
        # A NaN is no agreement.
        if difference <= _MAX_DIFFERENCE[candidate.exactness]:
            seconds[name] = duration
        else:
            _logger.warning("attention: %s is left out, its relative error is %.2g", name, difference)
    if not seconds and not is_lasting:
        raise torch.OutOfMemoryError(f"no attention has the memory to try {shape.num_tokens} tokens")
    if not seconds:
        raise DeviceError(f"no attention runs on {device}: {', '.join(admitted)} failed; see the log")
    return seconds, is_lasting


def _trial(shape: AttentionShape, device: torch.device) -> BlockRows:
    """Random arguments of the attention of one block, in which all rows are queries."""
    generator = torch.Generator(device).manual_seed(0)
    size = (1, shape.num_tokens, 3, shape.num_heads, shape.head_dim)
    qkv = torch.randn(size, generator=generator, dtype=shape.dtype, device=device)
    angles = torch.rand((size[1], size[4] // 2), generator=generator, device=device)
    # Sharper than a flat softmax, whose average hides a wrong score.
    norm = torch.full((2, shape.head_dim), 1.5, dtype=shape.dtype, device=device)
    return BlockRows(
        qkv=qkv, q_norm=norm, k_norm=norm, cos=angles.cos(), sin=angles.sin(),
        out=qkv.new_empty((1, size[1], size[3] * size[4])), queries=slice(0, size[1]), block=0,
    )  # fmt: skip


def _relative_rms(actual: Tensor, expected: Tensor) -> float:
    difference = (actual.float() - expected.float()).square().mean().sqrt()
    return float(difference / expected.float().square().mean().sqrt())


def _read(path: Path, admitted: Candidates) -> dict[str, float] | None:
    """Measured seconds by name; None if there are none that can be used."""
    try:
        seconds: dict[str, float] = parse_json(path.read_bytes())
        if seconds and all(name in admitted and value > 0 for name, value in seconds.items()):
            return seconds
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, TypeError):
        # Damaged: reported below, as is content that does not fit.
        pass
    _logger.warning("the measured attention in %s is damaged: measuring again", path)
    return None


def _write(path: Path, seconds: Mapping[str, float]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, json.dumps(seconds).encode())
    except OSError as error:
        _logger.warning("the measured attention is not kept: %s cannot be written: %s", path, error)
