"""One small denoising step of a packed transformer, and its units' blobs as they lie in a store."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.families.framepack.transformer_config import TransformerConfig
from isoframe.engine.families.framepack.unit_layout import unit_specs
from isoframe.engine.families.transformer_base import StepContext
from isoframe.engine.model.packing import ContextGroup
from isoframe.engine.model.units import UnitLayout
from isoframe.quant import WeightFormat


def layouts_of(config: TransformerConfig, weight_format: WeightFormat) -> list[UnitLayout]:
    return [UnitLayout(spec, weight_format) for spec in unit_specs(config)]


def blobs_of(layouts: list[UnitLayout], state: Mapping[str, Tensor]) -> list[Tensor]:
    """One blob (uint8) for each unit."""
    blobs = [torch.zeros(layout.num_bytes, dtype=torch.uint8) for layout in layouts]
    for layout, blob in zip(layouts, blobs, strict=True):
        for name, destination in layout.destinations(blob).items():
            destination.write(state[name])
    return blobs


def one_step(
    transformer: PackedTransformer,
    context: StepContext | None = None,
    *,
    num_passes: int = 1,
    grid: tuple[int, int] = (4, 6),
) -> Tensor:
    """Velocities of ``num_passes`` different steps of one section of one latent frame, stacked."""
    return prepared_steps(transformer, num_passes=num_passes, grid=grid)(context)


def prepared_steps(
    transformer: PackedTransformer, *, num_passes: int = 1, grid: tuple[int, int] = (4, 6)
) -> Callable[[StepContext | None], Tensor]:
    """:func:`one_step` that can be called again; what a job and a section compute once is not computed again."""
    config, generator = transformer.config, torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(1, *shape, generator=generator)

    with torch.inference_mode():
        job = transformer.prepare_job(
            torch.linspace(900, 300, num_passes),
            10_000.0 if config.guidance_embeds else None,
            draw(5, config.text_embed_dim),
            None,
            draw(config.pooled_projection_dim),
            transformer.project_image(draw(3, config.image_proj_dim)),
        )
        seen = ContextGroup(1, draw(config.in_channels, 2, *grid), (0, 2))
        section = transformer.pack_section([seen], (1,), (1, *grid))
        latents = draw(config.in_channels, 1, *grid)

    @torch.inference_mode()
    def run(context: StepContext | None = None) -> Tensor:
        return torch.stack(
            [transformer.step(latents, step, job, section, context).compute() for step in range(num_passes)]
        )

    return run
