"""The finished sections of a job on disk: latents, state of the noise, place of the encoded frames."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save
from torch import Tensor

from ..checkpoints.tensor_files import load_tensors, tensors_digest
from ..files import parse_json, write_durably
from ..media.segments import CodedFrame, Segment, SegmentSpool
from .paths import FRAMES_FILES, SECTION_FILES, frames_path, latents_path
from .seals import seal, unseal_whole

_logger = logging.getLogger(__name__)
_ENTRY = "isoframe"
_REMADE = "the section is made again"
# What reading a damaged file of a section raises.
_DAMAGE = (
    safetensors.SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, MemoryError,
    RecursionError,
)  # fmt: skip


class SectionFiles:
    """Two files a section: what was sampled, and where its frames are in the spool of all segments.

    Each file appears whole and carries an ``origin``: the redos up to its section. A file of another origin is of a
    section that is to be made again; a damaged one, too. Neither fails a job: it costs the time to make it again.

    Args:
        folder: exists.
        origin: of a section, by its index.
    """

    def __init__(self, folder: Path, origin: Callable[[int], str]) -> None:
        self._folder = folder
        self._origin = origin

    def write_latents(self, index: int, latents: Tensor, generator_state: Tensor) -> None:
        """Keep a sampled section."""
        tensors = {"latents": latents.contiguous(), "generator_state": generator_state}
        # One entry: safetensors writes several in no order, and equal sections are to be equal files.
        metadata = {_ENTRY: json.dumps({"origin": self._origin(index), "digest": tensors_digest(tensors)})}
        write_durably(latents_path(self._folder, index), save(tensors, metadata=metadata))

    def count_latents(self, num_sections: int) -> int:
        """How many of the first ``num_sections`` sections are sampled, in a row; their content is not checked."""
        missing = (index for index in range(num_sections) if not self._has_latents(index))
        return next(missing, num_sections)

    def count_records(self) -> int:
        """Sections whose frames are encoded; their content is not checked."""
        return sum(1 for _ in self._folder.glob(FRAMES_FILES))

    def read_latents(self, index: int) -> tuple[Tensor, Tensor] | None:
        """Latents and generator state of a section that is sampled; None if they are damaged."""
        path = latents_path(self._folder, index)
        try:
            tensors, metadata = load_tensors(path)
            if _entry(metadata)["digest"] != tensors_digest(tensors):
                raise ValueError("its content does not match its digest")
            return tensors["latents"], tensors["generator_state"]
        except _DAMAGE as error:
            _warn_of_damage(path, error)
            return None

    def write_segment(self, index: int, segment: Segment | None) -> None:
        """Keep where a section's frames are; None stands for a section that made none final."""
        values: dict[str, object] = {"origin": self._origin(index)}
        if segment is not None:
            segment.spool.sync()
            values |= {
                "first_frame": segment.first_frame,
                "offset": segment.offset,
                "coded_frames": [
                    (coded.size, coded.position, coded.is_key) for coded in segment.coded_frames
                ],
                "extradata": segment.spool.extradata.hex(),
                "digest": _segment_digest(segment),
            }
        write_durably(frames_path(self._folder, index), seal(values).encode())

    def read_segments(self, spool: SegmentSpool, most: int, extradata: bytes) -> tuple[int, list[Segment]]:
        """How many of the first ``most`` sections in a row have their frames in ``spool``, and their segments.

        The rest of the spool is cut off.
        """
        kept = list(self.kept_segments(spool, most, extradata))
        segments = [segment for segment in kept if segment is not None]
        spool.cut(segments[-1].offset + segments[-1].num_bytes if segments else 0)
        spool.extradata = extradata if segments else b""
        return len(kept), segments

    def kept_segments(
        self, spool: SegmentSpool, most: int, extradata: bytes, *, outcome: str = _REMADE
    ) -> Iterator[Segment | None]:
        """What each of at most ``most`` sections, those in a row from the first, has in ``spool``; writes nothing.

        Args:
            spool: of all segments.
            most: sections at most.
            extradata: of the encoder; segments of another one do not count.
            outcome: what comes of a section that cannot be read, for the warning.
        """
        for index in range(most):
            path = frames_path(self._folder, index)
            try:
                record = unseal_whole(path.read_bytes())
                if record["origin"] != self._origin(index):
                    return
                segment = _segment(record, spool) if "offset" in record else None
                if segment is not None and record["extradata"] != extradata.hex():
                    _logger.warning("another version encoded section %d: %s", index, outcome)
                    return
            except FileNotFoundError:
                return
            except _DAMAGE as error:
                _warn_of_damage(path, error, outcome)
                return
            yield segment

    def remove_from(self, index: int) -> None:
        """Delete the files of section ``index`` and all later ones."""
        for pattern in SECTION_FILES:
            for path in self._folder.glob(pattern):
                if int(path.stem.removeprefix("section_")) >= index:
                    path.unlink(missing_ok=True)

    def _has_latents(self, index: int) -> bool:
        path = latents_path(self._folder, index)
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                return bool(_entry(file.metadata())["origin"] == self._origin(index))
        except FileNotFoundError:
            return False
        except _DAMAGE as error:
            _warn_of_damage(path, error)
            return False


def _entry(metadata: dict[str, str] | None) -> dict[str, Any]:
    """What a file of latents says about itself; raises ValueError or KeyError where it says nothing."""
    entry: dict[str, Any] = parse_json((metadata or {})[_ENTRY])
    return entry


def _segment(record: dict[str, Any], spool: SegmentSpool) -> Segment:
    """The segment of ``record``; raises ValueError where the spool holds another, or nothing there."""
    coded_frames = tuple(
        CodedFrame(size=size, position=position, is_key=is_key)
        for size, position, is_key in record["coded_frames"]
    )
    segment = Segment(
        first_frame=record["first_frame"],
        num_frames=len(coded_frames),
        offset=record["offset"],
        coded_frames=coded_frames,
        spool=spool,
    )
    if segment.offset < 0 or any(coded.size <= 0 for coded in coded_frames):
        raise ValueError("its segment lies nowhere")
    if record["digest"] != _segment_digest(segment):
        raise ValueError("its segment does not match its digest")
    return segment


def _segment_digest(segment: Segment) -> str:
    return hashlib.sha256(segment.spool.read(segment.offset, segment.num_bytes)).hexdigest()


def _warn_of_damage(path: Path, reason: object, outcome: str = _REMADE) -> None:
    _logger.warning("%s is damaged (%s): %s", path, reason, outcome)
