"""Which sections make a video, in which order, at which frame positions, and which frames each of them sees.

Integers only. Every section is laid out by a packing schedule: the one that a job names, or the published one of its
order. Orders that lie between known sections lay each section out by what is known: its past as F1 sees it and one frame
of what is known further ahead, or its future as FramePackI2V sees it where its past is not there yet.

Frames that no section has made yet are zero, as in the published program. Gaps follow its rule too: before the generated
frames what the padding of the section says in inverted order and none in forward order, behind them the sections up to
the next known one, three at most.
"""

import bisect
import itertools
from dataclasses import dataclass

from .config import UNTRAINED_ORDERS, SamplingConfig
from .schedule import MAX_TAIL_FRAMES, Gap, Generated, Level, Schedule, Side, Tail, published_schedule
from .seen import SeenFrames, SeenLevel, SeenTail

# Latent frames that a section of the published layouts sees besides the start latent.
NUM_HISTORY = published_schedule("forward", 1).num_frames("past")
# Of a video that is extended, those that the history is made of.
MAX_CLIP_FRAMES = 4 * NUM_HISTORY + 1
# Sections between two that are planned ahead.
PLANNED_STRIDE = 4
# The published rule never shows a section further away than this many windows.
MAX_GAP = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionPlan:
    """One section of a job.

    Attributes:
        index: position in generation order, from 0.
        first_latent_frame: position in the video; the start latent is 0.
        latent_padding: whole windows between the start frame and the section as the model sees them.
        latent_indices: frame positions of the noisy latents, fed to the rotary embedding.
        seen: what the section sees.
    """

    index: int
    first_latent_frame: int
    latent_padding: int
    latent_indices: range
    seen: SeenFrames

    @property
    def frames(self) -> range:
        """Latent frames of the video that the section makes."""
        return range(self.first_latent_frame, self.first_latent_frame + len(self.latent_indices))

    @property
    def place(self) -> int:
        """Position in the video, in sections from 0."""
        return (self.first_latent_frame - 1) // len(self.latent_indices)


def plan_sections(config: SamplingConfig) -> list[SectionPlan]:
    """The sections of a job in generation order."""
    known: list[int] = []
    sections = []
    named = config.untrained_schedule
    for index, (place, padding) in enumerate(zip(section_places(config), _paddings(config), strict=True)):
        schedule = named or _own_schedule(config, place, known)
        sections.append(_Section(config, schedule, index, place, padding, known).plan())
        bisect.insort(known, place)
    return sections


def section_places(config: SamplingConfig) -> tuple[int, ...]:
    """Places in the video, from 0, in generation order.

    "endpoints": the last section, then the others from the start. "planned": every fourth section from the end towards
    the start, then those between them from the start. "custom": as the caller says.
    """
    places = range(config.num_sections)
    if config.order in ("forward", "inverted"):
        return tuple(places if config.order == "forward" else reversed(places))
    if config.order == "custom":
        assert config.section_order is not None, "the configuration was checked"
        return config.section_order
    last = config.num_sections - 1
    stride = PLANNED_STRIDE if config.order == "planned" else config.num_sections
    ahead = tuple(range(last, 0, -stride)) or (last,)
    return (*ahead, *(place for place in places if place not in set(ahead)))


def published_paddings(num_sections: int) -> tuple[int, ...]:
    """Latent paddings of the inverted order: n-1 ... 0, shortened to 3, 2, ..., 2, 1, 0 past four sections."""
    if num_sections > 4:
        return (3, *(2,) * (num_sections - 3), 1, 0)
    return tuple(range(num_sections - 1, -1, -1))


def stretch_paddings(config: SamplingConfig) -> tuple[int, ...]:
    """Paddings to the image that each section begins with or follows: those of every stretch are the published ones."""
    borders = (0, *config.guide_places, config.num_sections)
    lengths = [end - first for first, end in itertools.pairwise(borders)]
    return tuple(itertools.chain.from_iterable(published_paddings(length) for length in reversed(lengths)))


def most_tail_frames(config: SamplingConfig, schedule: Schedule) -> int:
    """Most frames beyond the history that a section has; those of which a schedule keeps none count too."""
    made = (config.num_sections - 1) * schedule.window
    past = 1 + made - schedule.num_frames("past")
    future = made - schedule.num_frames("future")
    side = next((side for part, side in schedule.sides() if isinstance(part, Tail)), None)
    return max(past if side == "past" else future, 0)


def largest_schedule(config: SamplingConfig) -> Schedule:
    """How the section is laid out that sees most: the job's schedule, or the one of its order.

    In an order that the model was not trained for, that is a section between two known ones, which sees one frame ahead.
    """
    if config.untrained_schedule is not None:
        return config.untrained_schedule
    if config.order not in UNTRAINED_ORDERS:
        return published_schedule(config.order, config.latent_window_size)
    return Schedule.parse(f"{published_schedule('forward', config.latent_window_size)}_x_f1k1")


def _paddings(config: SamplingConfig) -> tuple[int, ...]:
    """Windows between the start of the video and each section, in generation order; at most three in most orders."""
    if config.target_index is not None:
        return (config.target_index - 1,)
    if config.order == "inverted":
        return config.latent_paddings or stretch_paddings(config)
    return tuple(min(place, MAX_GAP) for place in section_places(config))


def _own_schedule(config: SamplingConfig, place: int, known: list[int]) -> Schedule:
    """What a section sees where the job names no schedule; ``known`` are the places made before it, sorted."""
    window = config.latent_window_size
    if config.order not in UNTRAINED_ORDERS:
        return published_schedule(config.order, window)
    position = bisect.bisect(known, place)
    if place > 0 and known[position - 1 : position] != [place - 1]:
        return Schedule.parse(f"f1k1_x_g{window}_x_f1k1f2k2f16k4")
    return largest_schedule(config) if position < len(known) else published_schedule("forward", window)


@dataclass(frozen=True, slots=True)
class _Section:
    """One section; ``known`` are the places of those that are made before it, sorted."""

    config: SamplingConfig
    schedule: Schedule
    index: int
    place: int
    padding: int
    known: list[int]

    @property
    def window(self) -> int:
        return self.schedule.window

    @property
    def first(self) -> int:
        """First latent frame of the section."""
        return 1 + self.place * self.window

    def plan(self) -> SectionPlan:
        tail_frames = self._tail_frames()
        places = self.schedule.layout(self._gaps(), self._num_tail_positions(tail_frames))
        latent = next(indices for part, indices in places if isinstance(part, Generated))
        return SectionPlan(
            index=self.index,
            first_latent_frame=self.first,
            latent_padding=self._told_padding(),
            latent_indices=latent,
            seen=SeenFrames(levels=self._levels(places), tail=self._tail(places, tail_frames)),
        )

    def _told_padding(self) -> int:
        """Windows between the start frame and the section, as the model is told.

        In other orders than inverted that is 0, unless the job names no schedule and the section sees no past.
        """
        if self.config.order == "inverted":
            return self.padding
        has_padding = self.config.schedule is None and not self.schedule.num_frames("past")
        return self.padding if has_padding else 0

    def _levels(self, places: list[tuple[Level | Generated | Tail, range]]) -> tuple[SeenLevel, ...]:
        ahead = self._ahead()
        starts: dict[Side, int] = {
            "start": 0,
            "past": self.first - self.schedule.num_frames("past"),
            "future": self.first + self.window,
            # Beyond the end of the video where nothing is made: zero.
            "ahead": 1 + (self.config.num_sections if ahead is None else ahead) * self.window,
        }
        sides = [(part, side) for part, side in self.schedule.sides() if isinstance(part, Level)]
        positions = [indices for part, indices in places if isinstance(part, Level)]
        levels = []
        for (level, side), indices in zip(sides, positions, strict=True):
            frames = range(starts[side], starts[side] + level.frames)
            levels.append(
                SeenLevel(
                    kernel=level.kernel, indices=indices, frames=frames, is_start=side == "start" and not frames.start
                )
            )  # fmt: skip
            starts[side] = frames.stop
        return tuple(levels)

    def _tail(self, places: list[tuple[Level | Generated | Tail, range]], frames: range) -> SeenTail | None:
        indices = next((indices for part, indices in places if isinstance(part, Tail)), None)
        if indices is None:
            return None
        kind = self.schedule.tail
        assert kind is not None, "a tail has a kind"
        return SeenTail(kind=kind, kernel=self.schedule.tail_kernel, indices=indices, frames=frames)

    def _tail_frames(self) -> range:
        """The run of known frames that begins beyond the history: "ta" has the nearest 128 of it, "tc" all."""
        side = next((side for part, side in self.schedule.sides() if isinstance(part, Tail)), None)
        if side is None or self.schedule.tail == "td":
            return range(0)
        most = MAX_TAIL_FRAMES if self.schedule.tail == "ta" else None
        if side == "past":
            stop = max(self.first - self.schedule.num_frames("past"), 0)
            start = self._known_since(stop)
            return range(start if most is None else max(start, stop - most), stop)
        start = self.first + self.window + self.schedule.num_frames("future")
        stop = self._known_until(start)
        return range(start, stop if most is None else min(stop, start + most))

    def _num_tail_positions(self, frames: range) -> int:
        if self.schedule.tail == "tc":
            return min(max(len(frames), 1), MAX_TAIL_FRAMES)
        return len(frames)

    def _known_since(self, stop: int) -> int:
        """First of the known frames in a row that end before ``stop``; ``stop`` where there are none."""
        if stop <= 1:
            # The start latent is always there.
            return 0
        position = self._find((stop - 2) // self.window)
        if position is None:
            return stop
        # Places less their positions never fall, and are equal in a row.
        first = bisect.bisect_left(range(position), self._offset(position), key=self._offset)
        place = self.known[first]
        return 1 + place * self.window if place else 0

    def _known_until(self, start: int) -> int:
        """The frame after the known ones in a row that begin at ``start``; ``start`` where there are none."""
        position = self._find((start - 1) // self.window)
        if position is None:
            return start
        end = bisect.bisect_right(
            range(len(self.known)), self._offset(position), lo=position, key=self._offset
        )
        return 1 + (self.known[end - 1] + 1) * self.window

    def _find(self, place: int) -> int | None:
        """Position of ``place`` among the known ones."""
        position = bisect.bisect_left(self.known, place)
        is_there = position < len(self.known) and self.known[position] == place
        return position if is_there else None

    def _offset(self, position: int) -> int:
        return self.known[position] - position

    def _ahead(self) -> int | None:
        """Place of the next known section."""
        position = bisect.bisect(self.known, self.place)
        return self.known[position] if position < len(self.known) else None

    def _gaps(self) -> list[int]:
        """Frames of the gaps in the order of time."""
        groups = self.schedule.groups
        generated = next(i for i, group in enumerate(groups) if isinstance(group, Generated))
        return [
            self._gap_before() if i < generated else self._gap_behind()
            for i, group in enumerate(groups)
            if isinstance(group, Gap)
        ]

    def _gap_before(self) -> int:
        past = self.schedule.num_frames("past")
        if self.config.order != "inverted" and past:
            return 0
        return max(self.padding * self.window - past, 0)

    def _gap_behind(self) -> int:
        ahead = self._ahead()
        return 0 if ahead is None else min(ahead - self.place - 1, MAX_GAP) * self.window
