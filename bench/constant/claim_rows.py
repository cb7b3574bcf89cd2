"""A constant-cost measurement as rows."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Self

from ...engine.request.config import EngineConfig, Request
from ..meters.job_cost import SECTION_PHASES, JobCost
from ..records.environment import Environment
from ..records.rows import BenchRow, Gate, Setting, this_environment
from .claims import ConstantResult, section_trend

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
_VERDICT = {0: "every claim holds", 1: "a claim does not hold", 3: "a claim cannot be told"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantSubject:
    """What was measured.

    Attributes:
        model: its name.
        model_hash: of its files; "random" where the weights are.
        device: "cpu" or "cuda".
        request: the job; its length does not count.
        config: of the engine.
        clock: "wall", "cpu" or "reference".
    """

    model: str
    model_hash: str
    device: str
    request: Request
    config: EngineConfig
    clock: str = "wall"

    @property
    def precision(self) -> str:
        """Of the model; what the engine takes where none was chosen."""
        return self.config.precision or self._fallback

    @property
    def dtype(self) -> str:
        """Of the activations."""
        return _DTYPES.get(self.precision, _DTYPES[self._fallback])

    @property
    def _fallback(self) -> str:
        return "fp32" if self.device == "cpu" else "bf16"

    def settings(self) -> dict[str, Setting]:
        """Of every row."""
        request, config = self.request, self.config
        return {
            "model": self.model,
            "model_hash": self.model_hash,
            "device": self.device,
            "size": "auto" if request.size is None else "x".join(map(str, request.size)),
            "order": request.order,
            "steps": request.num_steps,
            "window": request.latent_window_size,
            "attention": config.attention,
            "clock": self.clock,
            "vram": None if config.vram is None else str(config.vram),
            "ram": None if config.ram is None else str(config.ram),
        }


class ConstantRows:
    """Makes the rows of one measurement; they share its settings and its gate, the check of the operations."""

    def __init__(
        self,
        result: ConstantResult,
        *,
        environment: Environment,
        dtype: str,
        precision: str,
        settings: Mapping[str, Setting],
    ) -> None:
        self._result = result
        self._environment = environment
        self._dtype = dtype
        self._precision = precision
        self._settings = settings

    @classmethod
    def of(cls, result: ConstantResult, subject: ConstantSubject) -> Self:
        """Rows of a measurement of ``subject`` in this process."""
        return cls(
            result,
            environment=this_environment(),
            dtype=subject.dtype,
            precision=subject.precision,
            settings=subject.settings(),
        )

    def rows(self) -> list[BenchRow]:
        """Times by phase, peaks, bytes written and growth of every length, and the counters of section 6."""
        found = [row for job in self._result.jobs for row in self._job_rows(job)]
        return found + list(self._count_rows())

    def _job_rows(self, job: JobCost) -> Iterator[BenchRow]:
        sections, variant = job.sections, f"{job.length:g} s"
        yield self._row("constant-section", variant, "s/section", [section.total for section in sections])
        for phase in SECTION_PHASES:
            seconds = [section.seconds[phase] for section in sections if phase in section.seconds]
            if seconds:
                yield self._row(f"constant-{phase}", variant, "s/section", seconds)
        if job.references is not None:
            yield self._row("constant-reference", variant, "s", job.references)
        memory: dict[str, list[int | None]] = {
            "constant-host-peak": [*(section.peak_rss for section in sections)],
            "constant-device-peak": [section.peak_allocated for section in sections],
            "constant-written": [section.written for section in sections],
        }
        for case, values in memory.items():
            known = [float(value) for value in values if value is not None]
            if known:
                yield self._row(case, variant, "B", known)
        yield self._row("constant-measuring", variant, "ratio", [job.measuring_share])
        trend = section_trend(job)
        if trend.low > -float("inf"):
            if job.references is not None:
                wall = section_trend(job, is_relative=False).growth
                yield self._row("constant-growth-wall", variant, "ratio", [wall])
            for case, value in (("", trend.growth), ("-low", trend.low), ("-high", trend.high)):
                yield self._row(f"constant-growth{case}", variant, "ratio", [value])

    def _count_rows(self) -> Iterator[BenchRow]:
        settled = self._result.counts[5:-1]
        for name in asdict(settled[0]):
            values = [float(getattr(section, name)) for section in settled]
            yield self._row(f"constant-count-{name.replace('_', '-')}", "sections 6 on", "count", values)

    def _row(self, case: str, variant: str, unit: str, values: list[float]) -> BenchRow:
        gate = Gate(
            is_green=self._result.gate.is_green,
            text=f"{self._result.gate.text}; {_VERDICT[self._result.exit_code]}",
        )
        return BenchRow(
            case=case,
            variant=variant,
            shape=(),
            dtype=self._dtype,
            precision=self._precision,
            unit=unit,
            values=tuple(values),
            gate=gate,
            settings=self._settings,
            environment=self._environment,
        )
