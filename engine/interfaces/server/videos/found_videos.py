"""The videos that an earlier service left in its folder."""

import logging
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ....errors import InputError, IsoframeError
from ....files import writing
from ....jobs.folder import JobFolder
from ....jobs.paths import DONE, is_finished_name
from ....jobs.state import JobState
from .errors import failure_of
from .notes import Asked, End, read_asked, read_end
from .status import VideoStatus, describe, describe_damaged

_logger = logging.getLogger(__name__)
_NAME = re.compile(r"video_[0-9a-f]{24}")
# What a folder is called while its files are removed.
_REMOVED = ".removed"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundVideo:
    """One video of an earlier service.

    Attributes:
        path: its folder.
        job: in there, or why it cannot be read.
        asked: how it was asked for.
        status: how it stands; queued where it is to go on.
    """

    path: Path
    job: JobFolder | IsoframeError
    asked: Asked
    status: VideoStatus


def new_name() -> str:
    """Name of a new video, which is that of its folder too."""
    return f"video_{secrets.token_hex(12)}"


def find_videos(jobs: Path, kept: Path) -> list[FoundVideo]:
    """The videos in the order in which they were asked for; whatever is damaged in one is told as its failure.

    What is left of those that were being made or deleted when the process ended is removed.

    Args:
        jobs: folder of their folders; what has another name than a video is left as it is.
        kept: folder of the files that videos were given; those that no job needs any more are removed.

    Raises:
        InputError: ``jobs`` itself cannot be read.
    """
    try:
        paths = list(jobs.iterdir())
    except OSError as error:
        raise InputError(f"{jobs} cannot be read: {error.strerror}; check the folder") from error
    found: list[FoundVideo] = []
    for path in paths:
        if path.name.endswith(_REMOVED) and _NAME.fullmatch(path.name.removesuffix(_REMOVED)):
            _try_to_remove(path)
        elif _NAME.fullmatch(path.name):
            found += _find(path, jobs)
    others = [_open(path) for path in paths if JobFolder.is_job(path) and not _NAME.fullmatch(path.name)]
    _clear(kept, [*(video.job for video in found), *others])
    return sorted(found, key=lambda video: video.status.created)


def remove_job(path: Path) -> None:
    """Remove a job's folder, whatever is in it; from the first moment on it is no job any more, also on a full disk.

    Raises:
        InputError: that cannot be.
    """
    removed = path.with_name(f"{path.name}{_REMOVED}")
    with writing(path):
        os.rename(path, removed)
    _try_to_remove(removed)


def _try_to_remove(path: Path) -> None:
    """Remove what is no video any more; what is left of it is tried again at the next start."""
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        _logger.warning("%s could not be removed: %s", path, error)


def _find(path: Path, jobs: Path) -> Iterator[FoundVideo]:
    """The video in ``path``; none where nothing is left but what a crash interrupted."""
    asked = Asked(created=0.0)
    # Whatever is wrong with one folder must not keep the others from being served.
    try:
        asked = read_asked(path)
        job, end = _open(path), _read_end(path, jobs)
        if (end is not None and end.state is JobState.DELETED) or _is_unmade(path):
            remove_job(path)
            return
        if isinstance(job, JobFolder):
            yield FoundVideo(path=path, job=job, asked=asked, status=_status(job, asked, end))
            return
    except Exception as error:
        job = _damage(path, error)
    _logger.warning("listed as failed: %s", job)
    status = describe_damaged(path.name, failure_of(job, jobs), created=asked.created)
    yield FoundVideo(path=path, job=job, asked=asked, status=status)


def _open(path: Path) -> JobFolder | IsoframeError:
    try:
        return JobFolder.open(path)
    except Exception as error:
        return _damage(path, error)


def _damage(path: Path, error: Exception) -> IsoframeError:
    if isinstance(error, IsoframeError):
        return error
    _logger.error("%s cannot be read", path, exc_info=error)
    return InputError(f"{path} is damaged: {error}; delete the video")


def _read_end(path: Path, jobs: Path) -> End | None:
    """How the job ended; where that is damaged it must not go on by itself: somebody may have stopped it."""
    try:
        return read_end(path)
    except InputError as error:
        return End(state=JobState.FAILED, ended=path.stat().st_mtime, failure=failure_of(error, jobs))


def _is_unmade(path: Path) -> bool:
    """Whether the process ended before the record was written: nothing is made yet, so nothing is lost."""
    return not JobFolder.is_job(path) and not any(is_finished_name(name) for name in os.listdir(path))


def _clear(kept: Path, jobs: "list[JobFolder | IsoframeError]") -> None:
    """Remove given files that no job needs; one that cannot be read may need any of them."""
    if any(isinstance(job, IsoframeError) for job in jobs) or not kept.is_dir():
        return
    videos = (job.record.request.video for job in jobs if isinstance(job, JobFolder))
    needed = {Path(video).name for video in videos if video is not None}
    for path in kept.iterdir():
        if path.name not in needed:
            _try_to_remove(path)


def _status(folder: JobFolder, asked: Asked, end: End | None) -> VideoStatus:
    status, job = describe(folder, created=asked.created), folder.status()
    if job.is_done:
        end = End(state=JobState.DONE, ended=(folder.path / DONE).stat().st_mtime)
    if end is None:
        return status
    finished = job.num_sections if job.is_done else job.num_finished_sections
    return replace(
        status,
        state=end.state,
        ended=end.ended,
        failure=end.failure,
        num_finished_sections=finished,
        progress=finished / job.num_sections,
    )
