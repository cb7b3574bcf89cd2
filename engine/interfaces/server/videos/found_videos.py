"""The videos that an earlier service left in its folder."""

import logging
import re
import secrets
import shutil
from dataclasses import replace
from pathlib import Path

from ....errors import InputError
from ....jobs.folder import JobFolder
from ....jobs.paths import DONE
from ....jobs.state import JobState
from .notes import Asked, End, read_asked, read_end
from .status import VideoStatus, describe

_logger = logging.getLogger(__name__)
_NAME = re.compile(r"video_[0-9a-f]{24}")


def new_name() -> str:
    """Name of a new video, which is that of its folder too."""
    return f"video_{secrets.token_hex(12)}"


def find_videos(jobs: Path, kept: Path) -> list[tuple[JobFolder, Asked, VideoStatus]]:
    """The videos in the order in which they were asked for; one that is to go on is queued.

    What is left of those that were being made or deleted when the process ended is removed.

    Args:
        jobs: folder of their folders; what has another name than a video is left as it is.
        kept: folder of the files that videos were given; those that no job needs any more are removed.
    """
    found, needed, is_any_unreadable = [], set[str](), False
    for path in list(jobs.iterdir()):
        is_own = _NAME.fullmatch(path.name) is not None
        if is_own and _is_leftover(path):
            remove_job(path)
        elif JobFolder.is_job(path):
            try:
                folder = JobFolder.open(path)
            except InputError as error:
                _logger.warning("left as it is: %s", error)
                is_any_unreadable = True
                continue
            if (video := folder.record.request.video) is not None:
                needed.add(Path(video).name)
            if is_own:
                asked = read_asked(path)
                found.append((folder, asked, _status(folder, asked)))
    # An unreadable job may need any of them.
    if kept.is_dir() and not is_any_unreadable:
        for path in kept.iterdir():
            if path.name not in needed:
                path.unlink()
    return sorted(found, key=lambda video: video[2].created)


def remove_job(path: Path) -> None:
    """Remove a job's folder; without its record it is no job any more, whatever happens next."""
    (path / "job.json").unlink(missing_ok=True)
    shutil.rmtree(path)


def _is_leftover(path: Path) -> bool:
    end = read_end(path)
    return not JobFolder.is_job(path) or (end is not None and end.state is JobState.DELETED)


def _status(folder: JobFolder, asked: Asked) -> VideoStatus:
    status, job, end = describe(folder, created=asked.created), folder.status(), read_end(folder.path)
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
