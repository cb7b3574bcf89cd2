"""Small drawings of a video on its way: sections, memory and progress as SVG and HTML, pictures as one strip."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


_WIDTH, _BAR_HEIGHT = 640, 34
_COLOURS = {"given": "#3f6fb5", "done": "#2e7d5b", "at work": "#b5651d", "waiting": "#6b7680"}
# One section of so many has its number written: the first of these that leaves room for it.
_INTERVALS, _NUMBER_WIDTH = tuple(digit * 10**power for power in range(6) for digit in (1, 2, 5)), 22
_ORDER_NOTES = {
    "inverted": "the end is made first: 1 is the last part",
    "forward": "made from the start on",
}
_MIB = 2**20
# Of the strip of pictures.
_MAX_PICTURES, _HEIGHT = 12, 64
EMPTY, _GIVEN = (185, 192, 200), (63, 111, 181)


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionBar:
    """One section of a video.

    Attributes:
        number: in the order in which sections are made, from 1; 0 for frames that were given.
        start: seconds in the video.
        end: seconds in the video.
        state: "done", "at work", "waiting" or "given".
    """

    number: int
    start: float
    end: float
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySample:
    """Memory at a time.

    Attributes:
        seconds: since the app began to look.
        ram_bytes: resident memory of this process.
        device_bytes: memory of the device that this process has reserved; None on the CPU.
    """

    seconds: float
    ram_bytes: int
    device_bytes: int | None


def draw_sections(bars: Sequence[SectionBar], *, order: str) -> str:
    """The sections in video time, each with its turn; says which end of the video is made first."""
    if not bars:
        return ""
    length = max(bar.end for bar in bars)
    room = _WIDTH * max(bar.end - bar.start for bar in bars if bar.number) / length
    interval = next(interval for interval in _INTERVALS if interval * room >= _NUMBER_WIDTH)
    parts = [_open_svg(62, "sections of the video")]
    for bar in bars:
        x, width = _WIDTH * bar.start / length, _WIDTH * (bar.end - bar.start) / length
        parts.append(
            f'<rect class="{bar.state.replace(" ", "-")}" x="{x + 1:.1f}" y="16" width="{max(width - 2, 1):.1f}" '
            f'height="{_BAR_HEIGHT}" rx="4" fill="{_COLOURS[bar.state]}"><title>section {bar.number}: '
            f"{bar.start:.1f} to {bar.end:.1f} s, {bar.state}</title></rect>"
        )
        if bar.number % interval == 0 and (bar.number or width >= 2 * _NUMBER_WIDTH):
            parts.append(
                f'<text x="{x + width / 2:.1f}" y="37" text-anchor="middle" fill="#fff">{bar.number or "given"}</text>'
            )
    note = _ORDER_NOTES.get(order, "made in the order of the numbers")
    parts.append(f'<text x="0" y="11" fill="currentColor">{note}</text>')
    parts.append('<text x="0" y="61" fill="currentColor">0 s</text>')
    parts.append(
        f'<text x="{_WIDTH}" y="61" text-anchor="end" fill="currentColor">{length:.1f} s</text></svg>'
    )
    return "".join(parts)


def draw_memory(samples: Sequence[MemorySample]) -> str:
    """RAM and device memory over the last minutes."""
    if len(samples) < 2:
        return ""
    curves = {"RAM": [sample.ram_bytes for sample in samples]}
    device = [sample.device_bytes for sample in samples]
    if all(value is not None for value in device):
        curves["GPU"] = [value for value in device if value is not None]
    top = max(max(values) for values in curves.values()) * 1.1 or 1
    first, last = samples[0].seconds, samples[-1].seconds
    parts = [_open_svg(92, "memory")]
    for values, colour in zip(curves.values(), ("#3f6fb5", "#8b4fb0"), strict=False):
        points = " ".join(
            f"{_WIDTH * (sample.seconds - first) / max(last - first, 1e-9):.1f},{74 - 60 * value / top:.1f}"
            for sample, value in zip(samples, values, strict=True)
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    legend = ", ".join(f"{name} {values[-1] / _MIB:.0f} MiB" for name, values in curves.items())
    parts.append(f'<text x="0" y="11" fill="currentColor">{legend} (last {last - first:.0f} s)</text>')
    parts.append('<line x1="0" y1="75" x2="640" y2="75" stroke="currentColor" stroke-width=".5"/></svg>')
    return "".join(parts)


def draw_progress(share: float, text: str, *, title: str = "") -> str:
    """A bar filled to ``share`` of 1, between which video it is and what happens now."""
    percent = 100 * min(max(share, 0.0), 1.0)
    return (
        f'<p style="font-weight:600;overflow-wrap:anywhere">{html.escape(title)}</p>'
        f'<div role="progressbar" aria-valuenow="{percent:.0f}" aria-valuemin="0" aria-valuemax="100" '
        'style="background:#b9c0c855;border-radius:6px;overflow:hidden">'
        f'<div style="width:{percent:.1f}%;height:10px;background:{_COLOURS["done"]}"></div></div>'
        f"<p>{html.escape(text)}</p>"
    )


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


def _open_svg(height: int, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="100%" role="img" aria-label="{label}" '
        'font-family="sans-serif" font-size="11">'
    )


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
