"""One forward of a tiny transformer twice: on the references, then with every operator launching its Triton kernel.

Runs as a program under TRITON_INTERPRET=1, for the operators of its process stay re-registered. Writes JSON: the relative
RMS error between both, how often each operator launched, and every launch that left the limits of its spec.
"""

import json
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from tiny_models import IMAGE_WIDTH, POOLED_WIDTH, TEXT_WIDTH, tiny_model
from torch import Tensor

from isoframe.bench.meters.accuracy import find_errors, run
from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.families.framepack.transformer_config import TransformerConfig
from isoframe.engine.model.attention import SDPA_ATTENTION, Int8Attention, SelfAttention
from isoframe.engine.model.packing import ContextGroup
from isoframe.engine.sampling.step_cache import TeaCache
from isoframe.kernels import KERNELS, KernelSpec
from isoframe.quant import WeightFormat, make_format

# 3 x 5 tokens a frame, 84 in all: no block of any kernel divides the sequence.
SIZE = (2, 6, 10)
SEEN = {1: (0, 3), 2: (4, 5), 4: (6, 7, 8, 9, 10)}


def main(precision: str, dtype: str, attention: str) -> None:
    transformer = build(make_format(precision, getattr(torch, dtype)))
    attended = SDPA_ATTENTION if attention == "sdpa" else Int8Attention(attention)
    expected = forward(transformer, attended)
    launches, wrong = relaunch_every_operator()
    actual = forward(transformer, attended)
    error = float((actual - expected).double().norm() / expected.double().norm())
    sys.stdout.write(json.dumps({"error": error, "launches": launches, "wrong": wrong}))


def build(weight_format: WeightFormat) -> PackedTransformer:
    model = tiny_model()
    config = TransformerConfig.from_dict(model.config, source="test")
    transformer = PackedTransformer(
        config, weight_format.dtype, torch.device("cpu"), weight_format=weight_format
    )
    for name, tensor in model.state_dict().items():
        transformer.destinations[name].write(tensor)
    return transformer


@torch.inference_mode()
def forward(transformer: PackedTransformer, attention: SelfAttention) -> Tensor:
    """Two computed steps and a reused one between them, of one section with all history groups."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    groups = [
        ContextGroup(kernel, draw(1, 16, len(indices), *SIZE[1:]), indices)
        for kernel, indices in SEEN.items()
    ]
    latents = draw(1, 16, *SIZE)
    text = (draw(1, 9, TEXT_WIDTH), None, draw(1, POOLED_WIDTH))
    vision = transformer.project_image(draw(1, 5, IMAGE_WIDTH))
    job = transformer.prepare_job(torch.tensor([612.0, 612.0, 500.0]), 9984.0, *text, vision)
    section = transformer.pack_section(list(reversed(groups)), range(1, 3), SIZE)
    attention.reset()
    context = transformer.context(attention=attention)
    cache = TeaCache(num_steps=3, threshold=0.15)
    velocities = []
    for step in range(3):
        velocities.append(cache.velocity(step, transformer.step(latents, step, job, section, context)))
        assert cache.was_computed == (step != 1)
    return torch.cat(velocities)


def relaunch_every_operator() -> tuple[Counter[str], list[str]]:
    """From now on CPU tensors go through the Triton launchers; each launch is compared with the reference."""
    launches: Counter[str] = Counter()
    wrong: list[str] = []

    def compared(spec: KernelSpec) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            launches[spec.name] += 1
            written = tuple(i for i in spec.mutates if i < len(args) and args[i] is not None)
            expected = run(spec.reference, args, written)
            result = spec.launch(*args)
            actual = tuple(args[i] for i in written) or (result if isinstance(result, tuple) else (result,))
            wrong.extend(
                f"{spec.name}: {error}" for error in find_errors(spec, torch.float32, actual, expected)
            )
            return result

        return call

    for spec in KERNELS.values():
        spec.op.register_kernel("cpu")(compared(spec))
    return launches, wrong


if __name__ == "__main__":
    main(*sys.argv[1:])
