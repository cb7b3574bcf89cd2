"""What decides the bits of a video besides its request, model and libraries.

It is one record in the metadata of a video and in its job's; a later run takes from there what it can.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from ...kernels.linear.int8_product import product_name
from ..errors import DeviceError
from ..jobs.metadata import package_versions
from ..model.attention_backends import AttentionShape
from ..request.config import ATTENTIONS, SamplingConfig
from ..sampling.sampler import REVISIONS
from .loaded_model import LoadedModel

# More than any machine has: torch would start as many as a damaged record asks for.
_MAX_THREADS = 4096
# Recorded, but every choice gives the same bits.
_EXACT = ("product",)

Numerics = dict[str, Any]


def settle_numerics(
    model: LoadedModel, sampling: SamplingConfig, shape: AttentionShape, wanted: Mapping[str, Any]
) -> Numerics:
    """The numerics of a job: as ``wanted`` says where this process can compute so, else as they are here.

    Returns:
        threads: of a product on the CPU.
        cpu: instructions that torch's own operations use.
        attention: by name; "auto" where it is measured when the job begins.
        sampler_revision: of the sampler's arithmetic.
        product: of int8 matrices, where the CPU multiplies them.
    """
    threads = wanted.get("threads")
    is_usable = type(threads) is int and 0 < threads <= _MAX_THREADS
    found: Numerics = {
        "threads": threads if is_usable else torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "attention": _settle_attention(model, shape, wanted.get("attention")),
        "sampler_revision": REVISIONS[sampling.sampler],
    }
    if model.device.type == "cpu" and model.precision == "int8":
        found["product"] = product_name()
    return found


def recorded_numerics(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """What metadata say; those of the first version say nothing, and had the first revision of every sampler."""
    found = metadata.get("numerics")
    return found if isinstance(found, Mapping) else {"sampler_revision": 1}


def changed_numerics(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """What decides the bits and is another now than ``then``, in words; what was not recorded is not compared."""
    return tuple(
        f"{name.replace('_', ' ')} {value} then, {now.get(name)} now: not the same bit for bit"
        for name, value in then.items()
        if name not in _EXACT and value != now.get(name)
    )


def changed_versions(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """What of the libraries that decide the bits has another version now than ``metadata`` say, in words."""
    then = metadata.get("versions")
    if not isinstance(then, Mapping):
        return ()
    return changed_numerics({name: then[name] for name in then if name != "python"}, package_versions())


@contextlib.contextmanager
def computing_with(numerics: Numerics) -> Iterator[None]:
    """Compute on as many threads as ``numerics`` says, in this thread of the program."""
    before = torch.get_num_threads()
    torch.set_num_threads(numerics["threads"])
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _settle_attention(model: LoadedModel, shape: AttentionShape, wanted: object) -> str:
    if wanted in ATTENTIONS:
        try:
            return replace(model.attention, name=str(wanted)).settle(shape)
        except DeviceError:
            # The record is of another machine.
            pass
    return model.attention.settle(shape)
