"""Files of the engine: written whole or not at all, locked against other processes, and read within bounds."""

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import CheckpointError, InputError

try:
    import fcntl
except ImportError:
    # Windows, where a file that is open cannot be removed.
    fcntl = None  # type: ignore[assignment]  # there is no other module of this kind

TEMPORARY_SUFFIX = ".isoframe.tmp"
# How folders begin that are made for the time of one run.
TEMPORARY_FOLDER = "isoframe-"
TOKEN_BYTES = 4
_TEMPORARY = re.compile(rf"\..+\.[0-9a-f]{{{2 * TOKEN_BYTES},64}}{re.escape(TEMPORARY_SUFFIX)}")
# Where locks do not tell, a file that was not written for so long is nobody's.
ABANDONED_SECONDS = 24 * 3600
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


class WholeFile:
    """A file that is written under another name and gets its own when it is whole.

    It is locked meanwhile: so what a killed process left is told from what another one still writes.

    Attributes:
        path: what it will be called.
        temporary: where to write it.
    """

    def __init__(self, path: Path, token: str | None = None) -> None:
        """Nothing is created before :meth:`create`.

        Args:
            path: the file; its folder exists.
            token: for :func:`temporary_name`, so that the owner finds what a kill left behind; None is a new one.
        """
        self.path = path
        self._token = token or secrets.token_hex(TOKEN_BYTES)
        self.temporary = path.with_name(temporary_name(path.name, self._token))
        self._lock: int | None = None

    def create(self) -> Path:
        """Create :attr:`temporary`, and remove what killed processes left of others in its folder.

        Whoever calls this discards the file after any exception, one of this method too: it may be Ctrl-C.
        """
        if self.path.parent not in _swept:
            _swept.add(self.path.parent)
            remove_orphans(self.path.parent)
        self._lock = _create_locked(self.temporary)
        return self.temporary

    def sync(self) -> None:
        """Have the content reach the disk: done before it gets its name, a power cut leaves a whole file."""
        with self.temporary.open("r+b") as file:
            os.fsync(file.fileno())

    def place(self, *, overwrite: bool = True) -> None:
        """Give it its name, which with ``overwrite`` another file may have."""
        if overwrite:
            os.replace(self.temporary, self.path)
        else:
            _name_anew(self.temporary, self.path)
        self._unlock()

    def keep(self, error: OSError) -> "KeptOutputError":
        """Have the whole content outlast an ``error`` in :meth:`place`, under a short name; says where."""
        name, kept = f"isoframe-{self._token}{self.path.suffix}", self.temporary
        for folder in (self.path.parent, Path(tempfile.gettempdir())):
            try:
                shutil.move(self.temporary, folder / name)
                kept = folder / name
                break
            except OSError:
                continue
        self._unlock()
        reason = (
            f"{self.path} appeared while its content was made, and stays as it is"
            if isinstance(error, FileExistsError)
            else str(write_error(error, self.path))
        )
        return KeptOutputError(reason, kept)

    def discard(self) -> None:
        """Remove it."""
        self.temporary.unlink(missing_ok=True)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
        self._lock = None


class KeptOutputError(InputError):
    """An output was made whole and could not get its name.

    Attributes:
        kept: where its content is.
    """

    def __init__(self, reason: str, kept: Path) -> None:
        super().__init__(f"{reason}; the whole content is kept as {kept}")
        self.kept = kept


@contextlib.contextmanager
def replace_when_whole(path: Path, *, is_synced: bool = True) -> Iterator[Path]:
    """Yield where to write a file that takes the place of ``path`` on leaving; after an error ``path`` is as before.

    Args:
        path: what is replaced; its folder exists.
        is_synced: have the content reach the disk before it gets its name.
    """
    file = WholeFile(path)
    try:
        yield file.create()
        if is_synced:
            file.sync()
        file.place()
    except BaseException:
        # Ctrl-C too must leave nothing behind.
        file.discard()
        raise


@contextlib.contextmanager
def output_when_whole(
    path: Path, token: str | None = None, *, overwrite: bool, is_synced: bool = True
) -> Iterator[Path]:
    """As :func:`replace_when_whole`, for what somebody waits for: content that is whole is never given up.

    Raises:
        KeptOutputError: the content is whole, but cannot be called ``path``; without ``overwrite`` because such a file
            has appeared meanwhile.
    """
    file = WholeFile(path, token)
    try:
        yield file.create()
        if is_synced:
            file.sync()
        place_output(file, overwrite=overwrite)
    except KeptOutputError:
        raise
    except BaseException:
        file.discard()
        raise


def place_output(file: WholeFile, *, overwrite: bool) -> None:
    """Give a whole ``file`` its name, or raise :class:`KeptOutputError`."""
    try:
        file.place(overwrite=overwrite)
    except OSError as error:
        raise file.keep(error) from error


# Folders that this process has looked through.
_swept: set[Path] = set()


def remove_orphans(folder: Path) -> list[Path]:
    """Remove what killed processes of this user left half-written in ``folder``; what is still written stays."""
    removed = []
    try:
        entries = [entry for entry in os.scandir(folder) if _TEMPORARY.fullmatch(entry.name)]
    except OSError:
        return []
    for entry in entries:
        # Not mine, gone meanwhile, or still written: in none of these cases is it to be removed.
        with contextlib.suppress(OSError):
            if _is_orphan(Path(entry.path)):
                os.unlink(entry.path)
                removed.append(Path(entry.path))
    return removed


def _is_orphan(path: Path) -> bool:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
        return False
    if fcntl is None:
        return time.time() - status.st_mtime > ABANDONED_SECONDS
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks.
        return time.time() - status.st_mtime > ABANDONED_SECONDS
    finally:
        os.close(handle)


def _create_locked(path: Path) -> int | None:
    """A new file that :func:`remove_orphans` leaves alone while the handle is open."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        if fcntl is None:
            os.close(handle)
            return None
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        # Somebody who cleans may have removed it before it was locked.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.lstat()):
                return handle
        os.close(handle)


def _name_anew(temporary: Path, path: Path) -> None:
    """Rename, but fail where there is a file of that name."""
    if os.name == "nt":
        os.rename(temporary, path)
        return
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # A file system without links.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        os.replace(temporary, path)
    else:
        temporary.unlink()


def write_durably(path: Path, content: bytes, *, is_private: bool = True) -> None:
    """Replace ``path`` by a file of ``content``; on return it and its name are on the disk.

    Args:
        path: what is replaced; its folder exists.
        content: all of the file.
        is_private: other users cannot read it, whatever the umask: records have prompts, pictures and paths.
    """
    with replace_when_whole(path) as temporary:
        if is_private:
            # There are file systems without permissions.
            with contextlib.suppress(OSError):
                temporary.chmod(0o600)
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


# Too few handles, or too little memory.
MACHINE_LIMITS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def make_folder(purpose: str, folder: Path, *, is_private: bool = False) -> None:
    """Create ``folder`` if it is missing, ``is_private`` for this user alone.

    Raises:
        InputError: that cannot be done.
    """
    try:
        folder.mkdir(0o700 if is_private else 0o777, parents=True, exist_ok=True)
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
    elif error.errno in MACHINE_LIMITS:
        remedy = "end other programs, or raise the limits of this process (ulimit -a)"
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
