"""What one section sees: which frames of the video, how they are packed, where. Integers only."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from .schedule import Level


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenLevel:
    """Neighbouring frames that are packed alike.

    Attributes:
        kernel: 1, 2, 4 or 8: frames in one token.
        indices: positions of the frames, fed to the rotary embedding.
        frames: latent frames of the video that they stand for, the start latent is 0; those that are not there are zero.
        is_start: the first of them is the start image, also where another frame of a given video has its place.
    """

    kernel: int
    indices: range
    frames: range
    is_start: bool = False


def positions(levels: Iterable[SeenLevel]) -> tuple[int, ...]:
    """Positions of the frames of levels that are packed together."""
    return tuple(position for level in levels for position in level.indices)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenTail:
    """Frames beyond the history, of which only means are seen.

    Attributes:
        kind: "ta", the mean of every frame, or "tc", one mean of them all.
        kernel: of the level next to it, which embeds the means.
        indices: positions; "tc" has those of the 128 nearest frames, and one where there is no frame.
        frames: latent frames of the video, all of which are there; may be none.
    """

    kind: str
    kernel: int
    indices: range
    frames: range

    @property
    def num_tokens(self) -> int:
        return 1 if self.kind == "tc" else -(-len(self.frames) // self.kernel)


@dataclass(frozen=True, slots=True, kw_only=True)
class SeenFrames:
    """All that a section sees.

    Attributes:
        levels: in the order of time.
        tail: None where it is deleted, or has no frames yet.
    """

    levels: tuple[SeenLevel, ...]
    tail: SeenTail | None = None

    def groups(self) -> list[tuple[SeenLevel, ...]]:
        """The levels as they are packed: the coarsest first, those of single frames together."""
        by_kernel = sorted(self.levels, key=lambda level: -level.kernel)
        single = tuple(level for level in by_kernel if level.kernel == 1)
        return [(level,) for level in by_kernel if level.kernel > 1] + ([single] if single else [])

    def num_tokens(self, size: tuple[int, int]) -> int:
        """Tokens of all that the section sees at latents of ``size`` (Y, X)."""
        levels = sum(Level(len(level.frames), level.kernel).num_tokens(size) for level in self.levels)
        return levels + (0 if self.tail is None else self.tail.num_tokens)

    def frames(self) -> Iterator[int]:
        """Latent frames that a level may see; the start latent, which is always there, as 0."""
        return (frame for level in self.levels for frame in level.frames)

    def sources(self) -> set[int]:
        """Latent frames that levels and tail may see."""
        return {*self.frames(), *(() if self.tail is None else self.tail.frames)}
