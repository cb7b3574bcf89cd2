"""Where jobs are kept."""

import datetime
import secrets
from pathlib import Path


def jobs_path(cache_dir: Path) -> Path:
    """Where jobs are kept unless a folder is given."""
    return cache_dir / "jobs"


def new_job_path(cache_dir: Path) -> Path:
    """A name that no job has yet and that sorts by time."""
    now = datetime.datetime.now()
    return jobs_path(cache_dir) / f"{now:%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
