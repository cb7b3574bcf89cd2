"""The sections of a job that runs a packing schedule: which frames each of them sees. Integers only.

Frames lie as the schedule says, in any order of sections: those that no section has made yet are zero, as in the
published program. Gaps follow its rule too: before the generated frames what the padding of the section says in
inverted order and none in forward order, behind them the sections up to the next known one, three at most.
"""

import bisect
from dataclasses import dataclass

from .config import SamplingConfig
from .orders import MAX_GAP, section_places
from .schedules import MAX_TAIL_FRAMES, Gap, Generated, Level, Schedule, Side, Tail
from .sections import SectionPlan, stretch_paddings
from .seen_frames import SeenFrames, SeenLevel, SeenTail


def plan_scheduled(config: SamplingConfig, schedule: Schedule) -> list[SectionPlan]:
    """The sections of a job in generation order."""
    known: list[int] = []
    sections = []
    paddings = _paddings(config)
    for index, (place, padding) in enumerate(zip(_places(config), paddings, strict=True)):
        sections.append(_Section(config, schedule, index, place, padding, known).plan())
        bisect.insort(known, place)
    return sections


def most_tail_frames(config: SamplingConfig, schedule: Schedule) -> int:
    """Most frames beyond the history that a section has; those of which a schedule keeps none count too."""
    made = (config.num_sections - 1) * schedule.window
    past = 1 + made - schedule.num_frames("past")
    future = made - schedule.num_frames("future")
    side = next((side for part, side in schedule.sides() if isinstance(part, Tail)), None)
    return max(past if side == "past" else future, 0)


def _places(config: SamplingConfig) -> tuple[int, ...]:
    if config.order == "forward":
        return tuple(range(config.num_sections))
    if config.order == "inverted":
        return tuple(range(config.num_sections - 1, -1, -1))
    return section_places(config)


def _paddings(config: SamplingConfig) -> tuple[int, ...]:
    """Windows between the start of the video and each section, as the model is told."""
    if config.order == "inverted":
        return config.latent_paddings or stretch_paddings(config)
    return tuple(min(place, MAX_GAP) for place in _places(config))


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
            latent_padding=self.padding if self.config.order == "inverted" else 0,
            latent_indices=latent,
            clean_indices=(),
            clean_2x_indices=range(0),
            clean_4x_indices=range(0),
            seen=SeenFrames(levels=self._levels(places), tail=self._tail(places, tail_frames)),
        )

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
