"""Images that a video passes on its way: times in seconds, snapped to the sections of a video."""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .fields import settle_values
from .section_times import SectionTimes

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class GuideImage:
    """An image with a time: from there on it takes the place of the start image.

    Attributes:
        image: as the start image of a :class:`~isoframe.engine.Request`.
        time: seconds of video; snapped to the nearest border between two sections.
    """

    image: "str | os.PathLike[str] | Image | object"
    time: float

    def __post_init__(self) -> None:
        settle_values(self, "image")


def plan_guides(guides: Sequence[GuideImage], times: SectionTimes) -> tuple[int, ...]:
    """The section (video order, from 0) that begins at each guide image, in the order of their times.

    Raises:
        ConfigError: a time is outside of the video, nearer to its start or end than to a border between two sections,
            before that of the guide image ahead of it, or snaps to the same border.
    """
    borders = times.borders()
    places = tuple(_snap(guide, borders) for guide in guides)
    for (one, place), (other, next_place) in itertools.pairwise(zip(guides, places, strict=True)):
        if other.time < one.time:
            raise ConfigError(
                f"guide_images must be in the order of their times, got {one.time:g} s before {other.time:g} s"
            )
        if place == next_place:
            raise ConfigError(
                f"guide_images must be a section apart ({times.section_seconds:.2f} s), {one.time:g} s and {other.time:g} s "
                f"both snap to {borders[place]:.2f} s"
            )
    return places


def _snap(guide: GuideImage, borders: Sequence[float]) -> int:
    inner = borders[1:-1]
    place = min(range(len(borders)), key=lambda i: abs(borders[i] - guide.time))
    if 0 < place < len(borders) - 1:
        return place
    remedy = (
        f"take a time that is nearest to one of {', '.join(f'{time:.2f}' for time in inner[:8])}"
        f"{' ...' if len(inner) > 8 else ''} s, where its sections meet"
        if inner
        else "it has one section, within which nothing can be placed; ask for more seconds or a smaller window"
    )
    raise ConfigError(
        f"guide_images must have times inside the video (0 s is its image, {borders[-1]:.2f} s its end), got "
        f"{guide.time:g} s; {remedy}"
    )
