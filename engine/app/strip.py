"""The pictures of a video's latents, section by section, as one strip in video time."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_MAX_PICTURES, _HEIGHT = 12, 64
EMPTY = (185, 192, 200)


def compose_strip(folder: Path, sections: Sequence[int], num_frames: int) -> "Image | None":
    """Pictures spread evenly over the video; sections that were not begun are grey.

    Args:
        folder: of the previews, ``section_000.png`` and so on in generation order, each with its frames side by side.
        sections: the sections (generation order, from 0) in video order.
        num_frames: pictures of each.

    Returns:
        The strip, 64 px high; None before the first step.
    """
    from PIL import Image

    shown = [sections[i] for i in _spread(len(sections), min(len(sections), _MAX_PICTURES))]
    per_section = min(max(_MAX_PICTURES // len(sections), 1), num_frames)
    pictures = [
        _pictures(folder / f"section_{section:03d}.png", num_frames, per_section) for section in shown
    ]
    begun = [picture for found in pictures for picture in found]
    if not begun:
        return None
    width = begun[0].width
    strip = Image.new("RGB", (width * per_section * len(shown), _HEIGHT), EMPTY)
    for column, found in enumerate(pictures):
        for i, picture in enumerate(found):
            strip.paste(picture, ((column * per_section + i) * width, 0))
    return strip


def _pictures(path: Path, num_frames: int, count: int) -> "list[Image]":
    """``count`` of the frames of a section, spread evenly; none if it was not begun."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            strip = image.convert("RGB")
    except FileNotFoundError:
        return []
    width = strip.width // num_frames
    size = round(width * _HEIGHT / strip.height), _HEIGHT
    return [
        strip.crop((i * width, 0, (i + 1) * width, strip.height)).resize(size)
        for i in _spread(num_frames, count)
    ]


def _spread(total: int, count: int) -> list[int]:
    """``count`` of the numbers below ``total``, evenly."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
