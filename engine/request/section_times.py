"""When the sections of a video begin, which prompts and guide images snap to."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SectionTimes:
    """The sections of a video in seconds, from the start of what is made.

    Attributes:
        num_sections: of the video.
        section_frames: frames of a section.
        fps: frames per second.
        num_leading: see :attr:`Request.num_leading_frames`.
    """

    num_sections: int
    section_frames: int
    fps: float
    num_leading: int

    def start(self, place: int) -> float:
        """When section ``place`` (video order, from 0) begins; what leads the first one belongs to it."""
        return (self.num_leading + self.section_frames * place) / self.fps if place else 0.0

    def borders(self) -> list[float]:
        """Where sections begin, and the end of the last one."""
        return [self.start(place) for place in range(self.num_sections + 1)]

    @property
    def section_seconds(self) -> float:
        return self.section_frames / self.fps
