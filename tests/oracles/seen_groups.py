"""What sections see: of a plan its positions by kernel, of a job the groups that were packed."""

from collections.abc import Iterable
from typing import Any

import pytest
from torch import Tensor

from isoframe.engine.families.framepack.transformer import PackedTransformer
from isoframe.engine.model.packing import ContextGroup, PackedSection
from isoframe.engine.request.sections import SectionPlan
from isoframe.engine.request.seen import positions


def positions_of(plan: SectionPlan) -> dict[int, tuple[int, ...]]:
    """Positions of a layout that has every kernel once, by kernel."""
    return {levels[0].kernel: positions(levels) for levels in plan.seen.groups()}


def latents_of(groups: Iterable[ContextGroup]) -> dict[int, Tensor]:
    """Latents [1, C, T, Y, X] by kernel, each of which is there once."""
    return {group.kernel: group.latents for group in groups}


def watch_groups(monkeypatch: pytest.MonkeyPatch) -> list[list[ContextGroup]]:
    """A list that gets what every section that is packed from now on sees."""
    seen: list[list[ContextGroup]] = []
    pack = PackedTransformer.pack_section

    def spy(self: PackedTransformer, groups: list[ContextGroup], *rest: Any) -> PackedSection:
        seen.append(groups)
        return pack(self, groups, *rest)

    monkeypatch.setattr(PackedTransformer, "pack_section", spy)
    return seen
