"""Which prompt is in force when: times in seconds, snapped to the sections of a video."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from .fields import settle_values
from .section_times import SectionTimes

_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_MARK = re.compile(rf"\[\s*{_NUMBER}\s*s\s*(?:[:-]\s*{_NUMBER}\s*s\s*)?\]")
# What was meant as a mark, such as [2.5s:4] or [1s: he waves].
_LIKE_A_MARK = re.compile(r"\[\s*[\d.]+\s*s\b[^\]]*\]?")


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptSpan:
    """A prompt with a time.

    Attributes:
        text: what happens then; the base text of the request comes before it.
        start: seconds of video.
        end: seconds of video; None lasts until the next span, and goes on after spans that end.
    """

    text: str
    start: float
    end: float | None = None

    def __post_init__(self) -> None:
        settle_values(self)

    def __str__(self) -> str:
        return f"[{self.start:g}s]" if self.end is None else f"[{self.start:g}s: {self.end:g}s]"


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptStretch:
    """Neighbouring sections with one prompt.

    Attributes:
        text: the whole prompt.
        first_section: in video order, from 0.
        end_section: the first one after it.
    """

    text: str
    first_section: int
    end_section: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTimeline:
    """The prompts of a video.

    Attributes:
        stretches: in video order, without gaps.
        blend_sections: each section takes the mean of what is in force over so many sections around its middle.
    """

    stretches: tuple[PromptStretch, ...]
    blend_sections: float = 0.0

    @property
    def num_sections(self) -> int:
        return self.stretches[-1].end_section

    def weights(self, section: int) -> list[tuple[str, float]]:
        """Prompts of ``section`` (video order) and their shares, which sum to 1."""
        middle, reach = section + 0.5, self.blend_sections / 2
        # Such a short stretch around the middle does not leave the section.
        if reach <= 0.5:
            return [(stretch.text, 1.0) for stretch in self.stretches if _overlap(stretch, middle, middle)]
        first, end = max(middle - reach, 0.0), min(middle + reach, float(self.num_sections))
        shares = [
            (
                stretch.text,
                (min(stretch.end_section, end) - max(stretch.first_section, first)) / (end - first),
            )
            for stretch in self.stretches
        ]
        return [(text, share) for text, share in shares if share > 0]


def without_times(prompt: str) -> str:
    """``prompt`` with a space in the place of each time."""
    return _MARK.sub(" ", prompt)


def parse_prompt(prompt: str) -> tuple[str, tuple[PromptSpan, ...]]:
    """Base text and spans of ``"base [0s] first [2.5s: 4s] second"``; without marks all of it is base text.

    Raises:
        ConfigError: a mark is malformed.
    """
    marks = list(_MARK.finditer(prompt))
    for like in _LIKE_A_MARK.finditer(prompt):
        if not any(mark.start() <= like.start() < mark.end() for mark in marks):
            raise ConfigError(
                f"a time in prompt must be [2.5s] or [2.5s: 4s] with the text after it, got {like.group()!r}"
            )
    if not marks:
        return prompt, ()
    ends = [mark.start() for mark in marks[1:]] + [len(prompt)]
    spans = tuple(
        PromptSpan(
            text=prompt[mark.end() : end].strip(),
            start=float(mark[1]),
            end=None if mark[2] is None else float(mark[2]),
        )
        for mark, end in zip(marks, ends, strict=True)
    )
    return prompt[: marks[0].start()].strip(), spans


def plan_prompts(
    prompt: str, spans: Sequence[PromptSpan], times: SectionTimes, *, blend_seconds: float = 0.0
) -> PromptTimeline:
    """The prompts of a video's sections.

    Args:
        prompt: base text, or the notation of :func:`parse_prompt`.
        spans: with times, instead of the notation.
        times: of the sections.
        blend_seconds: each section takes the mean of the prompts in force so long around its middle.

    Raises:
        ConfigError: spans overlap, lie outside of the video or are too short for a section, or a part of the video
            has no prompt.
    """
    base, marked = parse_prompt(prompt)
    if marked and spans:
        raise ConfigError("prompt_spans must be empty where prompt has times such as [2.5s]")
    bounds = times.borders()
    ordered = sorted([*marked, *spans], key=lambda span: span.start)
    _check_times(ordered, bounds[-1], times.section_seconds)
    stretches = _fill(base, ordered, _snap(ordered, bounds), bounds)
    return PromptTimeline(
        stretches=stretches, blend_sections=blend_seconds * times.fps / times.section_frames
    )


def _check_times(spans: Sequence[PromptSpan], video_end: float, section_seconds: float) -> None:
    """Raise :class:`ConfigError` for a span outside of the video and for two that overlap."""
    # The video has whole sections: it may be half a section shorter than what was asked for.
    latest = video_end + section_seconds / 2
    for span in spans:
        if span.start < 0 or (span.end is not None and span.end <= span.start):
            raise ConfigError(f"a prompt's time must have an end after its start, got {span} {span.text!r}")
        if span.start >= video_end or (span.end or 0.0) > latest:
            raise ConfigError(
                f"prompt {span} {span.text!r} lies outside of the video, which ends at {video_end:.2f} s; ask for "
                "more seconds or take an earlier time"
            )
    for one, other in itertools.pairwise(spans):
        if other.start == one.start or (one.end is not None and other.start < one.end):
            ends = [end for end in (one.end, other.end, video_end) if end is not None]
            raise ConfigError(
                f"prompts {one} {one.text!r} and {other} {other.text!r} overlap from {other.start:g} s to "
                f"{min(ends):g} s; end one before the other begins"
            )


def _snap(spans: Sequence[PromptSpan], bounds: Sequence[float]) -> list[tuple[int, int]]:
    """First section and end of every span: the nearest bounds of sections."""

    def nearest(time: float) -> int:
        return min(range(len(bounds)), key=lambda i: abs(bounds[i] - time))

    snapped = []
    for index, span in enumerate(spans):
        later = spans[index + 1].start if index + 1 < len(spans) else bounds[-1]
        first, end = nearest(span.start), nearest(later if span.end is None else span.end)
        if first == end:
            section = min(first, len(bounds) - 2)
            raise ConfigError(
                f"prompt {span} {span.text!r} is too short: sections of this video have "
                f"{bounds[2] - bounds[1] if len(bounds) > 2 else bounds[1]:.2f} s, the nearest one is from "
                f"{bounds[section]:.2f} s to {bounds[section + 1]:.2f} s; take these times or a smaller window"
            )
        snapped.append((first, end))
    return snapped


def _fill(
    base: str, spans: Sequence[PromptSpan], places: Sequence[tuple[int, int]], bounds: Sequence[float]
) -> tuple[PromptStretch, ...]:
    """Stretches of all sections; between spans the last one without an end goes on, else the base text alone."""
    num_sections = len(bounds) - 1
    texts: list[str | None] = [None if spans and not base else base] * num_sections
    for span, (first, end) in zip(spans, places, strict=True):
        last = num_sections if span.end is None else end
        texts[first:last] = [" ".join(part for part in (base, span.text) if part)] * (last - first)
    stretches, place = [], 0
    for text, group in itertools.groupby(texts):
        end = place + len(list(group))
        if text is None:
            raise ConfigError(
                f"no prompt is in force from {bounds[place]:.2f} s to {bounds[end]:.2f} s; begin one at 0 s, or put "
                "a base text before the first time"
            )
        stretches.append(PromptStretch(text=text, first_section=place, end_section=end))
        place = end
    return tuple(stretches)


def _overlap(stretch: PromptStretch, first: float, end: float) -> bool:
    return stretch.first_section < end and first < stretch.end_section
