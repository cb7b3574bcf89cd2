"""Files of the engine: whole or absent, locked against other processes, and checked before work begins."""

import contextlib
import errno
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .errors import CheckpointError, InputError

TEMPORARY_SUFFIX = ".tmp"
# The header of a model with 10,000 tensors has 2 MB.
MAX_JSON_BYTES = 16 * 2**20


def expanded(path: Any) -> Any:
    """``path`` with the home folder in the place of a leading ``~``; anything else than such a path stays as it is."""
    if isinstance(path, str | os.PathLike) and isinstance(text := os.fspath(path), str) and text[:1] == "~":
        return (
            type(path)(os.path.expanduser(text)) if isinstance(path, str | Path) else os.path.expanduser(text)
        )
    return path


def temporary_name(name: str, token: str) -> str:
    """What the file ``name`` is called until it is whole; ``token`` tells it from those of other writers."""
    return f".{name}.{token}{TEMPORARY_SUFFIX}"


@contextlib.contextmanager
def replace_when_whole(path: Path, token: str | None = None, *, is_synced: bool = True) -> Iterator[Path]:
    """Yield where to write a file that takes the place of ``path`` on leaving; after an error ``path`` is as before.

    Args:
        path: what is replaced; its folder exists.
        token: for :func:`temporary_name`, so that the owner finds what a kill left behind; None is a new one.
        is_synced: have the content reach the disk before it gets its name, so that a power cut leaves a whole file.
    """
    temporary = path.with_name(temporary_name(path.name, token or secrets.token_hex(4)))
    try:
        yield temporary
        if is_synced:
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        # Ctrl-C too must leave nothing behind.
        temporary.unlink(missing_ok=True)
        raise


def write_durably(path: Path, content: bytes) -> None:
    """Replace ``path`` by a file of ``content``; on return it and its name are on the disk."""
    with replace_when_whole(path) as temporary:
        temporary.write_bytes(content)
    # Windows writes the names by itself.
    if os.name != "nt":
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def link_or_copy(path: Path, link: Path) -> None:
    """Another name of a file: a hard link, or a copy on a file system without links and from one to another."""
    try:
        os.link(path, link)
    except OSError:
        shutil.copyfile(path, link)


def parse_json(content: str | bytes) -> Any:
    """The value in JSON that anybody may have written.

    Raises:
        ValueError: it is no JSON or no UTF-8, nested too deeply, longer than 16 MiB, has a number that is not finite, or
            text that no file can hold.
    """
    if len(content) > MAX_JSON_BYTES:
        raise ValueError(f"JSON must be at most {MAX_JSON_BYTES} bytes, got {len(content)}")
    text = content if isinstance(content, str) else content.decode("utf-8")
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError("JSON is nested too deeply") from error
    # Half of a character outside of the basic plane, which only an escape can say.
    if re.search(r"\\u[dD][89a-fA-F]", text) is not None:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is no finite number")
    return number


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``; raises :class:`CheckpointError` where there is none."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it has more than {MAX_JSON_BYTES} bytes")
        raw = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} must be a JSON object, got {type(raw).__name__}")
    return raw


def cache_key(**inputs: object) -> str:
    """SHA-256 of everything that decides the content of a cached file."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def exclusive_lock(path: Path, message: str) -> Iterator[None]:
    """Hold ``path`` (created) for this process alone; the lock ends with its holder, however that ends.

    Raises:
        InputError: somebody else holds it; with ``message``.
        OSError: the file cannot be made.
    """
    # Imported here: commands that lock nothing answer sooner.
    import filelock

    # A lock of all threads: who closes a service need not be who opened it.
    lock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise InputError(message) from error
    try:
        yield
    finally:
        lock.release()


DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _check_file(path: Path, *, suffixes: tuple[str, ...], overwrite: bool) -> None:
    """Raise :class:`InputError` unless a file with one of ``suffixes`` can be written to ``path``; nothing is created."""
    suffix = suffixes[0]
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


def check_folder(purpose: str, folder: Path) -> None:
    """Raise :class:`InputError` unless files can be written to ``folder``, which need not exist yet."""
    try:
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise folder_error(purpose, folder, error) from error


def make_folder(purpose: str, folder: Path) -> None:
    """Create ``folder`` if it is missing; raise :class:`InputError` if that cannot be done."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise folder_error(purpose, folder, error) from error


def folder_error(purpose: str, folder: Path, error: OSError) -> InputError:
    """What to tell about a ``folder`` that took no file."""
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        # The system's "File exists" and "Not a directory" do not say which of the names is meant.
        blocking = (path for path in (folder, *folder.parents) if path.exists() and not path.is_dir())
        reason = f"{next(blocking, folder)} is a file, not a folder"
    return InputError(f"{purpose} folder {folder} cannot be written: {reason}; choose another folder")


def write_error(error: OSError, path: Path) -> InputError:
    """What to tell about a ``path`` that could not be written."""
    reason, remedy = error.strerror or str(error), "check the folder"
    if error.errno == errno.EFBIG:
        reason = "the file would be larger than its file system, or a limit of this process, allows"
        remedy = "choose a folder on another file system or raise the limit (ulimit -f)"
    elif error.errno in DISK_FULL:
        remedy = "free some space or choose another folder"
    return InputError(f"cannot write {path}: {reason}; {remedy}")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Where ``path`` cannot be written inside, raise an :class:`InputError` that says why and what helps."""
    try:
        yield
    except OSError as error:
        raise write_error(error, path) from error


def free_partial_path(path: Path) -> Path:
    """Where a job for ``path`` that stops early leaves what it finished: a name that nothing has yet."""
    names = (f"{path.stem}.partial{suffix}.mp4" for suffix in _suffixes())
    return next(free for name in names if not (free := path.with_name(name)).exists())


def is_partial_name(name: str, path: Path) -> bool:
    """Whether :func:`free_partial_path` of ``path`` gives such names."""
    start, end = f"{path.stem}.partial", ".mp4"
    number = name.removeprefix(start).removesuffix(end)
    return name == f"{start}{number}{end}" and re.fullmatch(r"(-[0-9]+)?", number) is not None


def _suffixes() -> "itertools.chain[str]":
    """Suffixes to try for a free name: nothing, then "-2", "-3" and so on."""
    return itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
