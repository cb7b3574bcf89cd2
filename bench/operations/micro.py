"""Small pieces of the work that are worth watching on their own: what each does, for pytest-benchmark to time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ...engine.families.registry import PUBLISHED_NAME
from ...engine.generation.model_lookup import find_model
from ...engine.model.attention_backends import device_capability
from ...engine.planning.budget import make_plan
from ...engine.planning.machine import Machine, find_card
from ...engine.planning.planned_job import PlannedJob
from ...engine.request.config import SamplingConfig
from ...engine.sampling.sampler import make_sampler, sigma_schedule
from ...kernels import KERNELS, KernelSpec
from ...quant import DenseFormat
from ..peers.peer_step import CASES
from ..subjects.random_model import allocate_transformer, fill_randomly
from ..subjects.single_step import draw_inputs, isoframe_step

Work = Callable[[], object]
_GIB = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroCase:
    """One piece of work.

    Attributes:
        name: of the piece.
        group: pieces of one kind are shown together.
        make: prepares it on a device.
    """

    name: str
    group: str
    make: Callable[[torch.device], Work]


def micro_cases(device: torch.device) -> Iterator[MicroCase]:
    """All pieces that run on ``device``."""
    is_cuda = device.type == "cuda"
    for spec in KERNELS.values():
        if not is_cuda or device_capability(device) >= min(spec.archs):
            yield MicroCase(name=spec.name, group="kernels", make=_Kernel(spec))
    yield MicroCase(name="step of the demo's shape", group="model", make=_make_step)
    yield MicroCase(name="25 updates of UniPC", group="host", make=_make_updates)
    yield MicroCase(name="plan of the 13B model", group="host", make=_make_plan)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """A kernel at a shape of the real model on CUDA, at a small one on the CPU."""

    spec: KernelSpec

    def __call__(self, device: torch.device) -> Work:
        is_cuda = device.type == "cuda"
        dtype = (
            torch.bfloat16
            if is_cuda and torch.bfloat16 in self.spec.max_error
            else next(iter(self.spec.max_error))
        )
        shape = (self.spec.bench_shapes if is_cuda else self.spec.test_shapes)[0]
        args = self.spec.make_inputs(shape, dtype, device)
        return lambda: self.spec.op(*args)


def _make_step(device: torch.device) -> Work:
    case, dtype = CASES["demo-fp32"], torch.bfloat16 if device.type == "cuda" else torch.float32
    transformer = fill_randomly(allocate_transformer(case.config, DenseFormat(dtype), device))
    step, _ = isoframe_step(transformer, draw_inputs(case.config, case.shape, dtype, device))

    def run() -> object:
        with torch.inference_mode():
            return step()

    return run


def _make_updates(device: torch.device) -> Work:
    sigmas = sigma_schedule(25, 9 * 40 * 38)
    latents = torch.zeros(1, 16, 9, 80, 76, device=device)

    def run() -> object:
        sampler, x = make_sampler("unipc", sigmas), latents
        for step in range(25):
            x = sampler.update(x, latents, step)
        return x

    return run


def _make_plan(_: torch.device) -> Work:
    known = find_model(PUBLISHED_NAME)
    job = PlannedJob(
        shapes=known.shapes, sampling=SamplingConfig(num_sections=4), size=(640, 608), precision="int8"
    )
    machine = Machine(vram=6 * _GIB, ram=16 * _GIB, card=find_card("RTX 3060"))
    return lambda: make_plan(job, machine)


def synchronized(work: Work, device: torch.device) -> Work:
    """``work``, done when it returns."""
    if device.type != "cuda":
        return work

    def run() -> object:
        result = work()
        torch.cuda.synchronize(device)
        return result

    return run
