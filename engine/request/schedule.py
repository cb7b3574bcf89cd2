"""Packing schedules in the paper's notation: which frames a section sees, how much each is compressed.

``f1k1_x_g9_f1k1f2k2f16k4_td`` reads in the order of time: 1 frame with kernel 1, any number of frames skipped, 9
frames generated, then 1, 2 and 16 frames with kernels 1, 2 and 4, and a tail of whatever lies further away, deleted.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from ..errors import ConfigError

# (frames, latent rows, latent columns) that one token stands for, by the short name of the kernel. The last one is the
# third applied to latents that were downsampled by 2 on every axis.
KERNELS = {1: (1, 2, 2), 2: (2, 4, 4), 4: (4, 8, 8), 8: (8, 16, 16)}
TAILS = {"td": "deleted", "ta": "one value a frame and channel", "tc": "one mean of all frames"}
MAX_TAIL_FRAMES = 128
# Where known frames lie: at the start of the video, before x; right before the generated ones; right behind them; beyond
# an x behind them.
Side = Literal["start", "past", "future", "ahead"]
_LEVEL = re.compile(r"f(\d+)k(\d+)(?:h(\d+)w(\d+))?")
_PART = re.compile(rf"x|g\d+|t[dac]|(?:{_LEVEL.pattern})+")


@dataclass(frozen=True, slots=True)
class Level:
    """Neighbouring frames that are compressed alike.

    Attributes:
        frames: how many.
        kernel: 1, 2, 4 or 8: frames in one token.
    """

    frames: int
    kernel: int

    def __str__(self) -> str:
        return f"f{self.frames}k{self.kernel}"

    def num_tokens(self, size: tuple[int, int]) -> int:
        """Tokens that the level takes at latents of ``size`` (Y, X)."""
        t, y, x = KERNELS[self.kernel]
        return -(-self.frames // t) * -(-size[0] // y) * -(-size[1] // x)


@dataclass(frozen=True, slots=True)
class Context:
    """Frames that are known: ``levels`` in the order of time."""

    levels: tuple[Level, ...]

    def __str__(self) -> str:
        return "".join(map(str, self.levels))

    @property
    def frames(self) -> int:
        return sum(level.frames for level in self.levels)


@dataclass(frozen=True, slots=True)
class Generated:
    """The frames that are denoised."""

    frames: int

    def __str__(self) -> str:
        return f"g{self.frames}"


@dataclass(frozen=True, slots=True)
class Gap:
    """Any number of frames that are not seen, none included."""

    def __str__(self) -> str:
        return "x"


@dataclass(frozen=True, slots=True)
class Tail:
    """Frames beyond a context: "td" deletes them, "ta" keeps one value for each, "tc" one mean of them all."""

    kind: str

    def __str__(self) -> str:
        return self.kind


Group = Context | Generated | Gap | Tail


@dataclass(frozen=True, slots=True)
class Schedule:
    """Groups of frames in the order of time; ``str(schedule)`` is the notation.

    Attributes:
        groups: exactly one :class:`Generated`, at most one :class:`Tail`.
    """

    groups: tuple[Group, ...]

    def __post_init__(self) -> None:
        if sum(isinstance(group, Generated) for group in self.groups) != 1:
            raise ConfigError(f"a schedule must generate once, such as g9, got {self}")
        if sum(isinstance(group, Tail) for group in self.groups) > 1:
            raise ConfigError(f"a schedule must have at most one tail, got {self}")
        for place, group in enumerate(self.groups):
            if isinstance(group, Tail) and not self._ends_a_context(place):
                raise ConfigError(f"the tail of a schedule must be at the far end of its history, got {self}")
            if isinstance(group, Gap) and not 0 < place < len(self.groups) - 1:
                raise ConfigError(f"x in a schedule must lie between frames, got {self}")

    @staticmethod
    @lru_cache(maxsize=64)
    def parse(text: str) -> "Schedule":
        """The schedule that ``text`` stands for.

        Raises:
            ConfigError: it is none; the message names the part.
        """
        return Schedule(tuple(_parse_part(part, text) for part in text.split("_")))

    def __str__(self) -> str:
        return "_".join(map(str, self.groups))

    @property
    def window(self) -> int:
        """Frames that are generated."""
        return next(group.frames for group in self.groups if isinstance(group, Generated))

    @property
    def tail(self) -> str | None:
        """Kind of the tail; None deletes what lies beyond, as "td" does."""
        return next((group.kind for group in self.groups if isinstance(group, Tail)), None)

    @property
    def history_frames(self) -> int:
        """Frames of the context that the tail belongs to, or next to those that are generated."""
        return max((group.frames for group in self._contexts() if group is not self._anchor), default=0)

    def num_context_tokens(
        self, size: tuple[int, int], num_tail_frames: int = 0, max_tail_frames: int = MAX_TAIL_FRAMES
    ) -> int:
        """Tokens of the known frames at latents of ``size`` (Y, X); slots that no frame fills count.

        Args:
            size: (Y, X) of the latents.
            num_tail_frames: frames beyond the history.
            max_tail_frames: of these the oldest ones are deleted.
        """
        tokens = sum(level.num_tokens(size) for group in self._contexts() for level in group.levels)
        if self.tail == "tc":
            return tokens + 1
        if self.tail == "ta":
            return tokens + -(-min(num_tail_frames, max_tail_frames) // self.tail_kernel)
        return tokens

    def num_noisy_tokens(self, size: tuple[int, int]) -> int:
        """Tokens of the generated frames at latents of ``size`` (Y, X)."""
        return Level(self.window, 1).num_tokens(size)

    def bound(self, size: tuple[int, int], max_tail_frames: int = MAX_TAIL_FRAMES) -> int:
        """Most tokens of a section, generated ones included, however long the video is."""
        context = self.num_context_tokens(size, max_tail_frames, max_tail_frames)
        return self.num_noisy_tokens(size) + context

    def layout(
        self, gap_frames: int | Sequence[int] = 0, num_tail_frames: int = 0
    ) -> list[tuple[Level | Generated | Tail, range]]:
        """Frame positions of every level, of the generated frames and of the tail where it has frames.

        Args:
            gap_frames: of all gaps, or of each in the order of time.
            num_tail_frames: frames beyond the history that have positions.
        """
        placed: list[tuple[Level | Generated | Tail, range]] = []
        gaps = iter([gap_frames] * len(self.groups) if isinstance(gap_frames, int) else gap_frames)
        start = 0
        for group in self.groups:
            if isinstance(group, Gap):
                start += next(gaps)
            for part in _parts(group):
                num_frames = num_tail_frames if isinstance(part, Tail) else part.frames
                if num_frames:
                    placed.append((part, range(start, start + num_frames)))
                start += num_frames
        return placed

    def sides(self) -> tuple[tuple[Level | Tail, Side], ...]:
        """Where every level and the tail lie, in the order of time.

        Raises:
            ConfigError: groups lie so that it is not said which frames of a video they are.
        """
        return _sides(self)

    def num_frames(self, side: Side) -> int:
        """Frames that the levels of ``side`` see."""
        return sum(part.frames for part, where in self.sides() if where == side and isinstance(part, Level))

    def _contexts(self) -> Iterator[Context]:
        return (group for group in self.groups if isinstance(group, Context))

    @property
    def _anchor(self) -> Context | None:
        """The context at the start of the video, which a gap separates from the rest; None where there is none."""
        first, second = (*self.groups, None, None)[:2]
        return first if isinstance(first, Context) and isinstance(second, Gap) else None

    @property
    def tail_kernel(self) -> int:
        """Kernel of the level next to the tail, which embeds the tail too."""
        place = next(place for place, group in enumerate(self.groups) if isinstance(group, Tail))
        before = self.groups[place - 1] if place else None
        if isinstance(before, Context):
            return before.levels[-1].kernel
        after = self.groups[place + 1]
        assert isinstance(after, Context), "a tail ends a context"
        return after.levels[0].kernel

    def _ends_a_context(self, place: int) -> bool:
        """Whether the tail at ``place`` has a context beside it on the way to what is generated."""
        generated = next(i for i, group in enumerate(self.groups) if isinstance(group, Generated))
        neighbour = place + 1 if place < generated else place - 1
        return isinstance(self.groups[neighbour], Context)


# A job asks for every section.
@lru_cache(maxsize=64)
def _sides(schedule: Schedule) -> tuple[tuple[Level | Tail, Side], ...]:
    place = next(i for i, group in enumerate(schedule.groups) if isinstance(group, Generated))
    before, after = _split(schedule.groups[:place]), _split(schedule.groups[place + 1 :])
    sides: list[tuple[Side, tuple[Group, ...]]] = [("past", before[-1]), ("future", after[0])]
    if len(before) == 2:
        sides.insert(0, ("start", before[0]))
    if len(after) == 2:
        sides.append(("ahead", after[1]))
    if len(before) > 2 or len(after) > 2 or (len(after) == 2 and after[0]):
        raise ConfigError(
            f"a schedule that runs must have at most one x on each side of {Generated(schedule.window)}, and behind it "
            f"no frames before the x, got {schedule}"
        )
    for side, groups in sides:
        far_end = -1 if side == "future" else 0
        if any(isinstance(group, Tail) for group in groups) and not (
            side in ("past", "future") and isinstance(groups[far_end], Tail)
        ):
            raise ConfigError(
                f"the tail of a schedule that runs must be at the far end of the frames that touch "
                f"{Generated(schedule.window)}, got {schedule}"
            )
    return tuple(
        (part, side)
        for side, groups in sides
        for group in groups
        for part in _parts(group)
        if not isinstance(part, Generated)
    )


def published_schedule(order: str, window: int) -> Schedule:
    """What the published checkpoints were trained with: "inverted" (FramePackI2V) or "forward" (F1)."""
    if order == "forward":
        return Schedule.parse(f"f1k1_x_td_f16k4f2k2f1k1_g{window}")
    return Schedule.parse(f"f1k1_x_g{window}_f1k1f2k2f16k4_td")


@lru_cache(maxsize=64)
def untrained_schedule(text: str | None, order: str, window: int) -> Schedule | None:
    """The schedule ``text``; None where that is the layout that ``order`` has anyway.

    Raises:
        ConfigError: it is no schedule.
    """
    if text is None:
        return None
    schedule = Schedule.parse(text)
    if order not in ("inverted", "forward"):
        return schedule
    return None if _same(schedule, published_schedule(order, window)) else schedule


def check_window(schedule: Schedule, window: int) -> None:
    """Raise :class:`ConfigError` unless ``schedule`` generates ``window`` frames."""
    if schedule.window != window:
        raise ConfigError(
            f"schedule must generate latent_window_size = {window} frames (g{window}), got g{schedule.window} in {schedule}; "
            f"latent_window_size={schedule.window} (--window {schedule.window}) makes sections of that length"
        )


def check_sides(schedule: Schedule, order: str) -> None:
    """Raise :class:`ConfigError` unless sections that are made in ``order`` can see each other with ``schedule``."""
    generated = Generated(schedule.window)
    sides = {side for part, side in schedule.sides() if isinstance(part, Level)}
    needed = _NEEDED_SIDES[order]
    if not sides & set(needed):
        places = " or ".join(_SIDE_NAMES[side] for side in needed)
        raise ConfigError(
            f"schedule with order={order!r} must have frames {places} {generated}, got {schedule}"
        )
    if order == "forward" and "ahead" in sides:
        raise ConfigError(
            f"schedule with order='forward' must have no frames beyond an x behind {generated}, which are never there, got "
            f"{schedule}; order 'endpoints' makes the end first"
        )


# Without one of these every section would be made as if it were alone.
_NEEDED_SIDES: dict[str, tuple[Side, ...]] = {
    "inverted": ("future", "ahead"),
    "forward": ("past",),
    "endpoints": ("past",),
    "planned": ("past", "future", "ahead"),
    "custom": ("past", "future", "ahead"),
}
_SIDE_NAMES = {"past": "right before", "future": "right behind", "ahead": "beyond an x behind"}


def _same(one: Schedule, other: Schedule) -> bool:
    """Whether two schedules see the same frames: a tail "td" is deleted, so it may be named or left out."""
    first, second = ([group for group in schedule.groups if group != Tail("td")] for schedule in (one, other))
    return first == second


def _split(groups: tuple[Group, ...]) -> list[tuple[Group, ...]]:
    """Split the groups of a schedule at its gaps."""
    found: list[list[Group]] = [[]]
    for group in groups:
        if isinstance(group, Gap):
            found.append([])
        else:
            found[-1].append(group)
    return [tuple(part) for part in found]


def _parts(group: Group) -> tuple[Level | Generated | Tail, ...]:
    if isinstance(group, Context):
        return group.levels
    return () if isinstance(group, Gap) else (group,)


def _parse_part(part: str, text: str) -> Group:
    if _PART.fullmatch(part) is None:
        raise ConfigError(
            f"a schedule must be parts such as f16k4, x, g9 and td, joined by _, got {part!r} in {text!r}"
        )
    if part == "x":
        return Gap()
    if part in TAILS:
        return Tail(part)
    if part.startswith("g"):
        return Generated(_positive(int(part[1:]), text))
    return Context(tuple(_parse_level(match, text) for match in _LEVEL.finditer(part)))


def _parse_level(match: re.Match[str], text: str) -> Level:
    kernel = int(match[2])
    if kernel not in KERNELS:
        raise ConfigError(f"a kernel must be k1, k2, k4 or k8, got k{kernel} in {text!r}")
    if match[3] is not None and (int(match[3]), int(match[4])) != KERNELS[kernel][1:]:
        _, rows, columns = KERNELS[kernel]
        raise ConfigError(
            f"kernel k{kernel} must be k{kernel}h{rows}w{columns}, got {match[0]!r} in {text!r}"
        )
    return Level(_positive(int(match[1]), text), kernel)


def _positive(frames: int, text: str) -> int:
    if frames < 1:
        raise ConfigError(f"frames in a schedule must be at least 1, got {frames} in {text!r}")
    return frames
