"""``isoframe plan``: whether a video fits into a card's memory, how, and how long it would take."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import typer

from ...families.family import PlannedModel
from ...families.registry import PUBLISHED_NAME
from ...generation.model_lookup import find_model
from ...media.buckets import scale_buckets
from ...model.precision import PRECISIONS
from ...planning.budget import make_plan
from ...planning.machine import Machine, described_machine
from ...planning.plan import Plan
from ...planning.planned_job import PlannedJob
from ...request.config import COMPUTE_DTYPES, EngineConfig, Request, SamplingConfig
from ...request.fields import JOB, MACHINE, OUTPUT, setting
from ...request.schedule import MAX_TAIL_FRAMES, Schedule, published_schedule
from .terminal import options
from .terminal.command import Asked, command
from .terminal.printing import PlainConsole, echo


@command(
    asked=(
        "seconds", "base_resolution", "order", "allow_untrained", "num_steps", "cfg_scale", "step_cache",
        "latent_window_size", "loras",
    ),
    config=("vram", "ram", "attention", "vae_tiles", "local_files_only"),
)  # fmt: skip
def plan(
    asked: Asked,
    config: EngineConfig,
    model: str = setting(
        PUBLISHED_NAME,
        f"{PUBLISHED_NAME} (the published model, built in: nothing is downloaded), demo, a Hub id, a folder or a "
        ".safetensors file.",
        option="--model -m", panel=JOB,
    ),
    size: str | None = setting(
        None, "Height x width in pixels, multiples of 16 (default: the model's size that needs most memory).",
        metavar="HxW", panel=JOB,
    ),
    schedule: list[str] | None = setting(
        None,
        "Count the tokens of this packing schedule, such as td_f16k4f4k2f1k1_g9_x_f1k1, beside those of the published one; "
        "repeatable. With --allow-untrained the first one is what is planned.",
        metavar="NOTATION",
    ),
    card: str | None = setting(
        None, "Card to plan for, such as 'RTX 3060 Laptop' (default: the one in this machine).", panel=MACHINE
    ),
    precision: str = setting("bf16", ", ".join(PRECISIONS), panel=MACHINE),
    compute_dtype: str = setting("auto", f"Of the activations: {', '.join(COMPUTE_DTYPES)}.", panel=MACHINE),
    trace: list[Path] | None = setting(
        None,
        "Predicted copies and uses of the weights: .json for chrome://tracing, .svg or .png for a chart of two steps; "
        "repeatable.",
        metavar="FILE", panel=OUTPUT,
    ),
    as_json: bool = setting(False, "Print JSON.", option="--json", panel=OUTPUT),
) -> None:  # fmt: skip
    """Show how a video would fit into the memory of a card, and how long it would take; nothing is loaded.

    Exits with 2 and the nearest settings that fit where it does not.
    """
    config = replace(config, precision=precision, compute_dtype=compute_dtype)
    machine = described_machine(card=card, vram=config.vram, ram=config.ram)
    found = find_model(model, local_files_only=config.local_files_only)
    schedules = [Schedule.parse(text) for text in schedule or ()]
    request = Request(
        image="", prompt="", **asked, size=options.parse_size(size),
        schedule=str(schedules[0]) if schedules and asked["allow_untrained"] else None,
    )  # fmt: skip
    job = _planned_job(found, request, config)
    made = make_plan(job, machine)
    if trace:
        _write_traces(trace, made, job, machine)
    latents = job.size[0] // 8, job.size[1] // 8
    shown = [published_schedule(job.sampling.order, request.latent_window_size), *schedules]
    counts = [_count_tokens(counted, latents) for counted in shown]
    if as_json:
        typer.echo(json.dumps({**made.as_dict(), "schedules": counts}, indent=2))
    else:
        _print(made)
        for counted, count in zip(shown, counts, strict=True):
            echo(_describe_tokens(counted, **count))


def _planned_job(found: PlannedModel, request: Request, config: EngineConfig) -> PlannedJob:
    """The job of ``request``, at the model's size that needs most memory where no other was asked for."""
    assert config.precision is not None, "the command says one"
    return PlannedJob(
        shapes=found.shapes,
        sampling=request.sampling(found.order),
        size=request.size or _most_demanding(found, request),
        precision=config.precision,
        compute_dtype=config.compute_dtype,
        lora_bytes=_lora_bytes(found, request, config.precision, config.compute_dtype),
        attention=config.attention,
        vae_tiles=config.vae_tiles,
    )


def _count_tokens(schedule: Schedule, latents: tuple[int, int]) -> dict[str, Any]:
    """Tokens of a section, and most that there can be however long the video is."""
    return {
        "schedule": str(schedule),
        "noisy_tokens": schedule.num_noisy_tokens(latents),
        "context_tokens": schedule.num_context_tokens(latents),
        "bound": schedule.bound(latents),
    }


def _describe_tokens(
    counted: Schedule, schedule: str, noisy_tokens: int, context_tokens: int, bound: int
) -> str:
    """What :func:`_count_tokens` counts, in one line."""
    tail = "" if counted.tail != "ta" else f", and up to {MAX_TAIL_FRAMES} tail frames"
    return (
        f"schedule {schedule}: {noisy_tokens} + {context_tokens} = {noisy_tokens + context_tokens} latent tokens a "
        f"section{tail}, at most {bound} at any length"
    )


def _lora_bytes(found: PlannedModel, request: Request, precision: str, compute_dtype: str) -> int:
    """Most that the LoRAs of a section take beside the weights; reads them."""
    if not request.loras:
        return 0
    import torch

    from ....quant import DENSE_DTYPES
    from ...checkpoints.lora import read_lora
    from ...families.registry import family_of
    from ...model.lora_layers import branch_bytes

    config = found.shapes.transformer
    family = family_of(config)
    layers = family.transformer_class()(config, torch.float32, torch.device("meta")).layer_shapes
    auto = precision if precision in DENSE_DTYPES else "bf16"
    dtype = DENSE_DTYPES[auto if compute_dtype == "auto" else compute_dtype]
    read = {lora.source: read_lora(lora.source, layers, family.lora_aliases()) for lora in request.loras}
    return max(
        branch_bytes(
            family.unit_specs(),
            [(read[use.source], use.strength) for use in request.loras if use.is_active(section)],
            dtype,
        )
        for section in range(request.num_sections)
    )


def _write_traces(paths: list[Path], made: Plan, job: PlannedJob, machine: Machine) -> None:
    from ...weights.timeline_file import write_timeline
    from ...weights.virtual_clock import predict_timeline

    timings = predict_timeline(made, job.denoise_shape(machine))
    for path in paths:
        write_timeline(timings, path)


def _most_demanding(found: PlannedModel, request: Request) -> tuple[int, int]:
    """The bucket with most tokens."""

    def num_tokens(size: tuple[int, int]) -> int:
        sampling = SamplingConfig(num_sections=1, latent_window_size=request.latent_window_size)
        return found.shapes.sequence(sampling, size).total

    return max(scale_buckets(found.buckets, request.base_resolution), key=num_tokens)


def _print(made: Plan) -> None:
    from ...planning.plan import plan_table

    PlainConsole().print(plan_table(made))
