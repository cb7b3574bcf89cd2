"""Where a video may be written, checked before any work is done."""

import tempfile
from pathlib import Path

from .errors import InputError


def check_video_path(path: Path, *, overwrite: bool) -> None:
    """Raise :class:`InputError` unless a video can be written to ``path``; its folder is created."""
    if path.is_dir():
        raise InputError(
            f"output must be a file, {path} is a folder; add a file name such as {path / 'video.mp4'}"
        )
    if path.suffix.lower() != ".mp4":
        raise InputError(f"output must end in .mp4, got {path}; use {path.with_suffix('.mp4')}")
    if path.exists() and not overwrite:
        raise InputError(f"output {path} exists; pass --overwrite (overwrite=True) or another name")
    check_folder("output", path.parent)


def check_folder(purpose: str, folder: Path) -> None:
    """Create ``folder``; raise :class:`InputError` unless files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise folder_error(purpose, folder, error) from error


def folder_error(purpose: str, folder: Path, error: OSError) -> InputError:
    """What to tell about a ``folder`` that took no file."""
    return InputError(
        f"{purpose} folder {folder} cannot be written: {error.strerror or error}; choose another folder"
    )


def partial_path(path: Path) -> Path:
    """Where a job for ``path`` that stops early leaves what it finished."""
    return path.with_name(f"{path.stem}.partial.mp4")
