"""The pictures of a video's latents, section by section, as one strip in video time."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_MAX_PICTURES, _HEIGHT = 12, 64
EMPTY, _GIVEN = (185, 192, 200), (63, 111, 181)


def compose_strip(folder: Path, spans: Sequence[tuple[int | None, int]], num_frames: int) -> "Image | None":
    """Pictures at even distances in the video; sections that were not begun are grey, frames that were given blue.

    Args:
        folder: of the previews, ``section_000.png`` and so on in generation order, each with its frames side by side.
        spans: in video order the sections (generation order, from 0), None for frames that were given, each with its
            length in latent frames.
        num_frames: pictures of each section.

    Returns:
        The strip, 64 px high; None before the first step.
    """
    from PIL import Image

    frames = list(chain.from_iterable([(section, i) for i in range(length)] for section, length in spans))
    shown = [frames[i] for i in _spread(len(frames), min(len(frames), _MAX_PICTURES))]
    drawn = {section: _read(folder, section) for section in {section for section, _ in shown} - {None}}
    begun = [picture for picture in drawn.values() if picture is not None]
    if not begun:
        return None
    width = round(begun[0].width / num_frames * _HEIGHT / begun[0].height)
    strip = Image.new("RGB", (width * len(shown), _HEIGHT), EMPTY)
    for column, (section, frame) in enumerate(shown):
        left, picture = column * width, drawn.get(section)
        if picture is not None:
            size = picture.width // num_frames
            cut = picture.crop((frame * size, 0, (frame + 1) * size, picture.height))
            strip.paste(cut.resize((width, _HEIGHT)), (left, 0))
        elif section is None:
            strip.paste(_GIVEN, (left, 0, left + width, _HEIGHT))
    return strip


def _read(folder: Path, section: int | None) -> "Image | None":
    """The frames of a section side by side; None if it was not begun."""
    from PIL import Image

    try:
        with Image.open(folder / f"section_{section:03d}.png") as image:
            return image.convert("RGB")
    except FileNotFoundError:
        return None


def _spread(total: int, count: int) -> list[int]:
    """``count`` of the numbers below ``total``, evenly."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]
