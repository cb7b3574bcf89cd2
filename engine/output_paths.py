"""Where outputs go: checked before any work, with a reason and a remedy for each path that cannot be written."""

import contextlib
import itertools
import os
import re
import tempfile
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from .errors import InputError
from .files import TOKEN_BYTES, folder_error, temporary_name

# Of nearly all file systems.
_NAME_BYTES, _PATH_BYTES = 255, 4096


def _check_file(path: Path, *, suffixes: tuple[str, ...], overwrite: bool) -> None:
    """Raise :class:`InputError` unless a file with one of ``suffixes`` can be written to ``path``; nothing is created."""
    suffix = suffixes[0]
    _check_names(path, *([_partial_name(path, "-999")] if path.suffix.lower() == ".mp4" else []))
    if path.is_dir():
        raise InputError(
            f"output must be a file, {path} is a folder; add a file name such as {path / f'video{suffix}'}"
        )
    if path.exists() and not path.is_file():
        raise InputError(
            f"output must be a file of its own, {path} is a device or a pipe; choose another path"
        )
    if path.suffix.lower() not in suffixes:
        raise InputError(
            f"output must end in {' or '.join(suffixes)}, got {path}; use {path.with_suffix(suffix)}"
        )
    if path.exists() and not overwrite:
        raise InputError(f"output {path} exists; pass --overwrite (overwrite=True) or another name")
    check_folder("output", path.parent)


check_video_path = partial(_check_file, suffixes=(".mp4",))
check_export_path = partial(_check_file, suffixes=(".mp4", ".gif", ".webp"))
check_png_path = partial(_check_file, suffixes=(".png",))
check_latents_path = partial(_check_file, suffixes=(".safetensors",))


def check_png_folder(folder: Path, *, overwrite: bool) -> list[Path]:
    """Raise :class:`InputError` unless a PNG sequence can be written to ``folder``; nothing is created.

    Returns:
        The frames of an earlier sequence, which ``overwrite`` gives up.
    """
    check_folder("PNG", folder)
    old_frames = sorted(folder.glob("frame_*.png"))
    if old_frames and not overwrite:
        raise InputError(
            f"PNG folder {folder} holds {old_frames[0].name}; pass --overwrite (overwrite=True) or another folder"
        )
    return old_frames


def check_extras(
    png_dir: str | os.PathLike[str] | None, latents_path: str | os.PathLike[str] | None, *, overwrite: bool
) -> None:
    """Raise :class:`InputError` unless a video's PNG frames and latents can be written; None is not asked for."""
    if png_dir is not None:
        check_png_folder(Path(png_dir), overwrite=overwrite)
    if latents_path is not None:
        check_latents_path(Path(latents_path), overwrite=overwrite)


def check_apart(outputs: Iterable[Path], sources: Iterable[object]) -> None:
    """Raise :class:`InputError` where one of ``outputs`` would replace what it is made from, under whatever name.

    Args:
        outputs: files to be written.
        sources: files that are read; what is no path is passed over.
    """
    for output, source in itertools.product(outputs, list(sources)):
        if isinstance(source, str | os.PathLike):
            with contextlib.suppress(OSError, ValueError):
                if os.path.samefile(output, source):
                    raise InputError(
                        f"output {output} is the file {source}, which it is made from; choose another name"
                    )


def _check_names(path: Path, *others: str) -> None:
    """Raise :class:`InputError` unless the file system takes the name of ``path`` and of ``others`` beside it.

    Each needs room for what it is called until it is whole. Limits are of bytes: a character may have four.
    """
    if "\0" in os.fspath(path):
        raise InputError(f"output must be a path, {os.fspath(path)!r} has a null character")
    folder = _existing(path.parent)
    limit = _limit(folder, "PC_NAME_MAX", _NAME_BYTES)
    missing = path.parent.absolute().parts[len(folder.absolute().parts) :]
    too_long = next((part for part in missing if len(os.fsencode(part)) > limit), None)
    if too_long is not None:
        raise InputError(
            f"output {path}: the name {too_long[:40]}... of a folder must have at most {limit} bytes, it has "
            f"{len(os.fsencode(too_long))}"
        )
    longest = max(
        len(os.fsencode(temporary_name(name, "0" * 2 * TOKEN_BYTES))) for name in (path.name, *others)
    )
    own = len(os.fsencode(path.name))
    if longest > limit:
        raise InputError(
            f"output name {path.name[:40]}... must have at most {own - (longest - limit)} bytes, it has {own}: its file "
            f"system takes names of {limit}, and while it is written it has a longer one"
        )
    most = _limit(folder, "PC_PATH_MAX", _PATH_BYTES) - 1
    if (num_bytes := len(os.fsencode(path)) - own + longest) > most:
        raise InputError(f"output {path} must be a path of at most {most} bytes, it would need {num_bytes}")


def _limit(folder: Path, name: str, otherwise: int) -> int:
    """What the file system of ``folder`` says of ``name``."""
    try:
        found = os.pathconf(folder, name)
    except (AttributeError, OSError, ValueError):
        return otherwise
    return found if found > 0 else otherwise


def _existing(folder: Path) -> Path:
    """``folder``, or the nearest one above it that is there."""
    for path in (folder, *folder.absolute().parents):
        # A name that is too long, or in a folder that may not be read.
        with contextlib.suppress(OSError):
            if path.exists():
                return path
    return Path(folder.anchor)


def check_folder(purpose: str, folder: Path) -> None:
    """Raise :class:`InputError` unless files can be written to ``folder``, which need not exist yet."""
    _check_names(folder / "x")
    try:
        existing = _existing(folder)
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise folder_error(purpose, folder, error) from error


def free_partial_path(path: Path) -> Path:
    """Where a job for ``path`` that stops early leaves what it finished: a name that nothing has yet."""
    names = (_partial_name(path, suffix) for suffix in _suffixes())
    return next(free for name in names if not (free := path.with_name(name)).exists())


def _partial_name(path: Path, suffix: str) -> str:
    return f"{path.stem}.partial{suffix}.mp4"


def is_partial_name(name: str, path: Path) -> bool:
    """Whether :func:`free_partial_path` of ``path`` gives such names."""
    start, end = f"{path.stem}.partial", ".mp4"
    number = name.removeprefix(start).removesuffix(end)
    return name == f"{start}{number}{end}" and re.fullmatch(r"(-[0-9]+)?", number) is not None


def _suffixes() -> "itertools.chain[str]":
    """Suffixes to try for a free name: nothing, then "-2", "-3" and so on."""
    return itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
