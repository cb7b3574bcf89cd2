"""A process at work on a job: what it finds finished, and what it adds."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import InputError
from ..events import PhaseEvent
from ..files import parse_json, write_durably, writing
from ..media.segments import KeptSegments, Segment, SegmentSpool
from ..output_paths import is_partial_name
from ..request.config import Request
from ..request.sections import plan_sections
from ..sampling.history import SampledSections, needed_sections
from .paths import DONE, PARTIAL, SPOOL, frames_path, latents_path
from .record import JobRecord

if TYPE_CHECKING:
    from ..events import EventHandler
    from ..sampling.denoiser import LatentSection
    from .section_files import SectionFiles

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Redo:
    """From ``section`` (generation order, from 0) on the job is made again.

    Attributes:
        section: the first one.
        seed: this section alone is drawn from it; None continues the job's sequence.
        prompt: of this section and all later ones; None keeps the one before.
    """

    section: int
    seed: int | None = None
    prompt: str | None = None

    def __post_init__(self) -> None:
        if type(self.section) is not int or type(self.seed) not in (int, NoneType):
            raise TypeError(f"section and seed must be integers, got {self.section!r} and {self.seed!r}")
        if not isinstance(self.prompt, str | None):
            raise TypeError(f"prompt must be text, got {self.prompt!r}")


class JobRun:
    """One run of a job. Sections before :attr:`num_encoded` need nothing any more.

    Attributes:
        path: the job's folder.
        num_encoded: sections whose frames are encoded.
        sampled: the sections that are sampled, at least as many.
        segments: the encoded frames.
        request: of the sections that are still to be sampled: as asked for, or with the prompt of a redo.
        metadata: of the video file; names the redos.
    """

    def __init__(
        self, path: Path, record: JobRecord, sections: "SectionFiles", redos: Sequence[Redo]
    ) -> None:
        """Use :meth:`JobFolder.running`."""
        self.path = path
        self._record = record
        self._sections = sections
        self._redos = redos
        prompts = [redo.prompt for redo in redos if redo.prompt is not None]
        self.request = reprompted(record.request, prompts[-1]) if prompts else record.request
        self.metadata = redone_metadata(record, redos)
        self.num_encoded, self.segments = self._read_segments()
        self.sampled = self._read_sampled()

    def latents(self, index: int) -> Tensor:
        """Latents of a finished section, [1, C, window, Y, X] fp32."""
        found = self._sections.read_latents(index)
        if found is None:
            raise InputError(f"section {index + 1} in {self.path} was damaged while the job ran; resume it")
        return found[0]

    def keep_latents(self, section: "LatentSection", report: "EventHandler") -> Tensor:
        """Keep a sampled section; its latents."""
        report(PhaseEvent(phase="checkpoint"))
        with writing(latents_path(self.path, section.index)):
            self._sections.write_latents(section.index, section.latents, section.generator_state)
        return section.latents

    def keep_segment(self, index: int, segment: Segment | None, report: "EventHandler") -> None:
        """Keep the encoded frames that became final with section ``index``; None where there are none."""
        report(PhaseEvent(phase="checkpoint"))
        with writing(frames_path(self.path, index)):
            self._sections.write_segment(index, segment)
        self.num_encoded = index + 1

    def partial(self) -> Path | None:
        """The file that an earlier run left."""
        return read_partial(self.path, self._record.output)

    def note_partial(self, path: Path) -> None:
        """A file beside the output holds what is finished; :meth:`finish` removes it."""
        self._note(PARTIAL, path)

    def finish(self, video: Path) -> None:
        """Note in the folder that the video is complete."""
        self._note(DONE, video)
        partial = self.partial()
        if partial is not None:
            with writing(partial):
                partial.unlink(missing_ok=True)
                (self.path / PARTIAL).unlink()

    def explain(self, error: BaseException) -> None:
        """Say in a note of ``error``, which ends the run early, how the job goes on."""
        error.add_note(f"finished sections are kept in {self.path}; to go on: isoframe resume {self.path}")

    def close(self) -> None:
        """Close the files; closing twice is allowed."""
        self.segments.spool.close()

    def _note(self, name: str, video: Path) -> None:
        with writing(self.path / name):
            write_durably(self.path / name, json.dumps({"video": video.name}).encode())

    def _read_segments(self) -> tuple[int, KeptSegments]:
        num_sampled, video_format = self._find_whole(), self._record.video_format
        with writing(self.path / SPOOL):
            spool = SegmentSpool.kept(self.path / SPOOL)
            num_encoded, segments = self._sections.read_segments(
                spool, num_sampled, video_format.parameter_sets()
            )
        return num_encoded, KeptSegments(spool=spool, segments=tuple(segments), token=self._record.token)

    def _find_whole(self) -> int:
        """Sections in a row, from the first, that are sampled and undamaged."""
        num_sampled = self._sections.count_latents(self._record.sampling.num_sections)
        height, width = self._record.video_format.height, self._record.video_format.width
        shape = self._record.sampling.latent_window_size, height // 8, width // 8
        for index in range(num_sampled):
            found = self._sections.read_latents(index)
            if found is None or found[0].shape[2:] != shape:
                self._sections.remove_from(index)
                return index
        return num_sampled

    def _read_sampled(self) -> SampledSections:
        num_sections = self._sections.count_latents(self._record.sampling.num_sections)
        sampling = self._record.sampling
        last = self._sections.read_latents(num_sections - 1) if num_sections else None
        needed = needed_sections(plan_sections(sampling), num_sections)
        return SampledSections(
            num_sections=num_sections,
            latents=_KeptSections(self, tuple(needed)),
            generator_state=None if last is None else last[1],
            next_seed=next((redo.seed for redo in self._redos if redo.section == num_sections), None),
        )


@dataclass(frozen=True, slots=True)
class UnkeptRun:
    """A run of a job that has no folder: nothing is finished before it, and nothing stays of it but its video.

    Attributes:
        request: of all sections.
        metadata: of the video file.
    """

    request: Request
    metadata: Mapping[str, object]
    path: None = None
    num_encoded: int = 0
    sampled: SampledSections = field(default_factory=SampledSections)
    segments: None = None

    def latents(self, index: int) -> Tensor:
        """Raise an IndexError: without a folder no section of an earlier run is kept."""
        raise IndexError(f"section {index + 1} is not kept")

    def keep_latents(self, section: "LatentSection", report: "EventHandler") -> Tensor:
        """The latents of ``section``."""
        return section.latents

    def keep_segment(self, index: int, segment: Segment | None, report: "EventHandler") -> None:
        """Let go of a segment, which the writer has."""

    def partial(self) -> None:
        """None: without a folder there is no file of an earlier run."""

    def note_partial(self, path: Path) -> None:
        """Do nothing: no later run will look for the file of what is finished."""

    def finish(self, video: Path) -> None:
        """Do nothing: there is no folder to be marked as done."""

    def explain(self, error: BaseException) -> None:
        """Add nothing to the error: a job without a folder cannot be resumed."""


@dataclass(frozen=True, slots=True)
class _KeptSections:
    """Finished sections of a run, each read when its turn comes: of a long job they may be many."""

    run: JobRun
    indices: tuple[int, ...]

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        return ((index, self.run.latents(index)) for index in self.indices)


def reprompted(request: Request, prompt: str) -> Request:
    """The request with another prompt, which may have times of its own.

    Raises:
        ConfigError: its times do not fit the video.
    """
    return replace(request, prompt=prompt, prompt_spans=())


def read_partial(folder: Path, output: Path) -> Path | None:
    """The file beside ``output`` that holds what is finished of a job that stopped early; None if there is none."""
    path = folder / PARTIAL
    try:
        # Version 0.1.0 wrote whole paths. The file will be removed: it must be one that a job leaves.
        name = Path(parse_json(path.read_bytes())["video"]).name
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        _logger.warning("%s is damaged (%s) and not used", path, error)
        return None
    if not is_partial_name(name, output):
        _logger.warning("%s names %s, which is no part of %s, and is not used", path, name, output.name)
        return None
    return output.with_name(name)


def redone_metadata(record: JobRecord, redos: Sequence[Redo]) -> dict[str, object]:
    """What the video file says: how the job began, and what was made again."""
    return {**record.metadata, **({"redos": [asdict(redo) for redo in redos]} if redos else {})}
