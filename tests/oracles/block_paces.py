"""Blocks on a virtual clock."""

from isoframe.engine.families.family import BlockWork
from isoframe.engine.families.framepack.unit_layout import block_units


def block_paces(
    num_dual: int,
    num_single: int,
    *,
    projections: tuple[float, float],
    attention: float,
    rests: tuple[float, float],
    single: float,
) -> list[BlockWork]:
    """Seconds of blocks with two units, and of those with one, which take ``single`` seconds."""
    return [
        BlockWork(units=units, projections=projections, attention=attention, rests=rests)
        if len(units) == 2
        else BlockWork(units=units, projections=(0.0,), attention=single, rests=(0.0,))
        for units in block_units(num_dual, num_single)
    ]
