"""Bytes that a job adds to the process in RAM: weights on their way, frames, and latents that later sections see."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate

from ..model.precision import PRECISIONS
from ..request.config import UNTRAINED_ORDERS, SamplingConfig
from ..request.sections import SectionPlan, plan_sections
from .machine import Machine
from .plan import HostBytes, Tier
from .planned_job import PlannedJob


def most_held_frames(sampling: SamplingConfig, *, num_given: int = 1, is_decoded: bool = True) -> int:
    """Most latent frames that are held at once; 0 for a published layout, whose history never grows.

    Args:
        sampling: of the job.
        num_given: latent frames that are there before the first section.
        is_decoded: sections that are made ahead also wait for the decoder.
    """
    is_ordered = sampling.order in UNTRAINED_ORDERS
    if sampling.untrained_schedule is None and not is_ordered:
        return 0
    plans, window = plan_sections(sampling), sampling.latent_window_size
    waiting = _waiting_sections(plans) if is_decoded and is_ordered else [0] * len(plans)
    return num_given + max(
        # What a section sees is gathered beside the history, and still there when its own frames come in.
        kept + len(list(plan.seen.frames())) + window * (1 + num_waiting)
        for plan, kept, num_waiting in zip(plans, kept_frames(plans), waiting, strict=True)
    )


def kept_frames(plans: Sequence[SectionPlan]) -> list[int]:
    """How many frames of earlier sections are kept while each one is made; ``plans`` are in generation order."""
    last_use: dict[int, int] = {}
    for plan in plans:
        last_use |= dict.fromkeys(plan.seen.frames(), plan.index)
    changes = [0] * (len(plans) + 1)
    for plan in plans:
        for place in plan.frames:
            last = last_use.get(place, -1)
            if last > plan.index:
                changes[plan.index + 1] += 1
                changes[last + 1] -= 1
    return list(accumulate(changes))[:-1]


def _waiting_sections(plans: Sequence[SectionPlan]) -> Iterator[int]:
    """Sections that wait with each one for those before them in the video, itself included."""
    waiting: set[int] = set()
    next_place = 0
    for plan in plans:
        waiting.add(plan.place)
        yield len(waiting)
        while next_place in waiting:
            waiting.remove(next_place)
            next_place += 1


# Pinned memory cannot be given back under pressure, so it is never all of the RAM budget.
_PINNED_SHARE = 0.8
# Measured on the CPU: the first call of an operator imports torch._dynamo (55 MiB); the rest is manifests, buffers and what malloc keeps.
_RUNTIME_BYTES = 100 * 2**20
# Of each pixel of a video that is read, for FFmpeg and the frame at hand; measured: 49 for H.264 with 16 reference frames, 34 for HEVC.
_SOURCE_BYTES = 56
# Units that the staging buffers hold.
_NUM_STAGED = 3


def choose_host(job: PlannedJob, machine: Machine) -> tuple[HostBytes, Tier]:
    """What is held in RAM, and the fastest tier that fits; on the CPU units are read straight into their slots."""
    on_disk = host_on_disk(job, machine)
    if machine.is_cpu:
        return on_disk, "disk"
    store = sum(job.denoise_shape(machine).weights.units)
    pinned = replace(on_disk, store=store, staging=0)
    if pinned.total <= machine.ram and store <= _PINNED_SHARE * machine.ram:
        return pinned, "pinned"
    staged = replace(on_disk, store=store)
    return (staged, "staged") if staged.total <= machine.ram else (on_disk, "disk")


def host_on_disk(job: PlannedJob, machine: Machine) -> HostBytes:
    """What is held in RAM with the units on disk."""
    slot = max(job.denoise_shape(machine).weights.units)
    has_companions = not job.is_latents_only
    is_device = has_companions and not machine.is_cpu
    shapes, value = job.shapes, machine.companion_bytes
    return HostBytes(
        store=0,
        staging=0 if machine.is_cpu else _NUM_STAGED * slot,
        once=_once_bytes(job, machine),
        vae=is_device * value * shapes.vae_params,
        encoder=is_device
        * value
        * max(encoder.num_params for encoder in shapes.encoders if not encoder.is_layerwise),
        frames=has_companions * _frame_bytes(job, machine),
        history=_history_bytes(job),
        runtime=_RUNTIME_BYTES,
    )


def _once_bytes(job: PlannedJob, machine: Machine) -> int:
    """Bytes of the weights that only the start of a job needs.

    A stored model reads them one layer at a time, and its checkpoint may have them in fp32.
    """
    shape = job.denoise_shape(machine)
    if job.is_stored(machine):
        return replace(shape, precision=PRECISIONS["fp32"]).weights.largest_once_layer
    return shape.weights.once


def _history_bytes(job: PlannedJob) -> int:
    """Latents in fp32; the published layouts hold 60 frames at most, for which ``runtime`` has room."""
    num_frames = most_held_frames(
        job.sampling, num_given=-(-job.num_encoded_frames // 4), is_decoded=not job.is_latents_only
    )
    return 4 * job.shapes.latent_channels * (job.size[0] // 8) * (job.size[1] // 8) * num_frames


def _frame_bytes(job: PlannedJob, machine: Machine) -> int:
    """Frames of a decode and the open edge, in the VAE's dtype and as uint8; before, those of a video that is extended."""
    window = job.sampling.latent_window_size
    decoded, edge = 8 * window + 1, 4 * window - 3
    num_values = 3 * job.size[0] * job.size[1]
    made = num_values * (machine.companion_bytes + 1) * (decoded + edge)
    if not job.num_source_pixels:
        return made
    # A clip as uint8 and in fp32.
    return max(made, num_values * 5 * job.num_encoded_frames) + _SOURCE_BYTES * job.num_source_pixels
