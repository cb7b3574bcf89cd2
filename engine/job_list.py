"""All jobs of a folder; the job folders are the truth, nothing else is kept."""

from collections.abc import Iterator
from pathlib import Path

from .errors import InputError
from .job_folder import JobFolder
from .job_paths import jobs_path


def find_job(name: str, cache_dir: Path) -> JobFolder:
    """The job in the folder ``name``, or of this name among those of ``cache_dir``.

    Raises:
        InputError: there is none.
    """
    path = Path(name)
    if not path.exists() and path.name == name and (jobs_path(cache_dir) / name).exists():
        path = jobs_path(cache_dir) / name
    return JobFolder.open(path)


def list_jobs(cache_dir: Path) -> Iterator[JobFolder | InputError]:
    """Every job of ``cache_dir`` by name; for one that cannot be read, why not."""
    folder = jobs_path(cache_dir)
    if not folder.is_dir():
        return
    for path in sorted(path for path in folder.iterdir() if JobFolder.is_job(path)):
        try:
            yield JobFolder.open(path)
        except InputError as error:
            yield error
