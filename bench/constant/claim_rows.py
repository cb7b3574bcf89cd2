"""A constant-cost measurement and its subject as rows."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Self

import torch

from ...engine.device import resolve_device
from ...engine.engine import Engine
from ...engine.request.config import EngineConfig, Request
from ..meters.job_cost import SECTION_PHASES, JobCost
from ..records.rows import BenchRow, Gate, Setting, activation_dtype, in_words, make_rows, this_environment
from .claims import JOB_FOLDER, ConstantResult, Render, section_trend

_VERDICT = {0: "every claim holds", 1: "a claim does not hold", 3: "a claim cannot be told"}
Quantity = tuple[str, str, str, Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantSubject:
    """The model whose cost per second of video is measured.

    Attributes:
        model: its name.
        model_hash: of its files; "random" where the weights are.
        device: where it computes.
        config: what it was opened with.
        render: makes a video.
    """

    model: str
    model_hash: str
    device: torch.device
    config: EngineConfig
    render: Render

    @classmethod
    def open(cls, model: str, config: EngineConfig, *, has_job_folder: bool) -> Self:
        """A model that computes with its own weights, and keeps what is finished in a job folder or not."""
        engine = Engine.load(model, config=config)
        return cls(
            model=engine.components.name,
            model_hash=engine.model_hash,
            device=engine.device,
            config=config,
            render=lambda job, path, on_event: engine.render(
                job, path, on_event=on_event, job_dir=path.parent / JOB_FOLDER if has_job_folder else None
            ),
        )

    @classmethod
    def draw(cls, model: str, config: EngineConfig) -> Self:
        """A model with random weights."""
        from ..subjects.random_job import RandomJob

        device = resolve_device(config.device)
        render = RandomJob(model, config, device).render
        return cls(model=model, model_hash="random", device=device, config=config, render=render)

    def settings(self, request: Request, clock: str) -> dict[str, Setting]:
        """The settings that every row of a job carries; the length of the video is not among them."""
        config = self.config
        return {
            "model": self.model,
            "model_hash": self.model_hash,
            "device": self.device.type,
            "size": "auto" if request.size is None else in_words(request.size),
            "order": request.order,
            "steps": request.num_steps,
            "window": request.latent_window_size,
            "attention": config.attention,
            "clock": clock,
            "vram": None if config.vram is None else str(config.vram),
            "ram": None if config.ram is None else str(config.ram),
        }


def constant_rows(
    result: ConstantResult, subject: ConstantSubject, request: Request, clock: str = "wall"
) -> list[BenchRow]:
    """Times by phase, peaks, bytes written and growth of every length, and the counters of section 6."""
    precision = subject.config.precision or ("fp32" if subject.device.type == "cpu" else "bf16")
    return make_rows(
        [*(row for job in result.jobs for row in _job_quantities(job)), *_counts(result)],
        dtype=activation_dtype(precision, subject.device.type),
        precision=precision,
        gate=Gate(is_green=result.gate.is_green, text=f"{result.gate.text}; {_VERDICT[result.exit_code]}"),
        settings=subject.settings(request, clock),
        environment=this_environment(),
    )


def _job_quantities(job: JobCost) -> Iterator[Quantity]:
    sections, variant = job.sections, f"{job.length:g} s"
    yield "constant-section", variant, "s/section", [section.total for section in sections]
    for phase in SECTION_PHASES:
        seconds = [section.seconds[phase] for section in sections if phase in section.seconds]
        if seconds:
            yield f"constant-{phase}", variant, "s/section", seconds
    if job.references is not None:
        yield "constant-reference", variant, "s", job.references
    for case, name in (("host-peak", "peak_rss"), ("device-peak", "peak_allocated"), ("written", "written")):
        known = [value for section in sections if (value := getattr(section, name)) is not None]
        if known:
            yield f"constant-{case}", variant, "B", known
    yield "constant-measuring", variant, "ratio", [job.measuring_share]
    trend = section_trend(job)
    if trend.low > -float("inf"):
        if job.references is not None:
            wall = section_trend(job, is_relative=False).growth
            yield "constant-growth-wall", variant, "ratio", [wall]
        for case, value in (("", trend.growth), ("-low", trend.low), ("-high", trend.high)):
            yield f"constant-growth{case}", variant, "ratio", [value]


def _counts(result: ConstantResult) -> Iterator[Quantity]:
    settled = result.counts[5:-1]
    for name in asdict(settled[0]):
        values = [getattr(section, name) for section in settled]
        yield f"constant-count-{name.replace('_', '-')}", "sections 6 on", "count", values
