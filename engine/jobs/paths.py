"""Where jobs are kept, and what the files in the folder of a job are called; see :class:`~.folder.JobFolder`."""

import datetime
import fnmatch
import secrets
from pathlib import Path

RECORD, REDOS, LOCK, DONE, SPOOL = "job.json", "redos.json", "lock", "done.json", "segments.bin"
JOBS = "jobs"
# Where the playable file is that a run which stopped early has left.
PARTIAL = "partial.json"
FRAMES_FILES = "section_*.json"
SECTION_FILES = ("section_*.safetensors", FRAMES_FILES)


def image_path(folder: Path, field: str) -> Path:
    """Where a job keeps the image of a request's ``field``."""
    return folder / f"{field}.png"


def latents_path(folder: Path, index: int) -> Path:
    """Where the latents of section ``index`` are, and the state of the noise after it."""
    return folder / f"section_{index:04d}.safetensors"


def frames_path(folder: Path, index: int) -> Path:
    """Where it is noted which of the segments has the frames of section ``index``."""
    return folder / f"section_{index:04d}.json"


def is_finished_name(name: str) -> bool:
    """Whether a file in a job's folder holds something that was made."""
    patterns = (SPOOL, DONE, "*.mp4", *SECTION_FILES)
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def jobs_path(cache_dir: Path) -> Path:
    """Where jobs are kept unless a folder is given."""
    return cache_dir / JOBS


def new_job_path(cache_dir: Path) -> Path:
    """A name that no job has yet and that sorts by time."""
    now = datetime.datetime.now()
    return jobs_path(cache_dir) / f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
