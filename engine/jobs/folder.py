"""The folder of one job, with everything that a later process needs to go on bit for bit, and lists of such folders.

Nothing is kept about jobs anywhere else.
"""

import fnmatch
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ..errors import ConfigError, InputError
from ..files import exclusive_lock, expanded, make_folder, parse_json, temporary_name, write_durably, writing
from ..media.given import IMAGE_FIELDS, guide_field
from ..media.video import read_video_info
from ..output_paths import check_folder
from ..request.notation import check_notation, check_text
from ..request.prompts import without_times
from .paths import DONE, LOCK, RECORD, REDOS, SECTION_FILES, SPOOL, image_path, is_finished_name, jobs_path
from .record import JobRecord
from .run import JobRun, Redo, read_partial, redone_metadata, reprompted
from .seals import seal, unseal_whole
from .section_files import SectionFiles

if TYPE_CHECKING:
    from PIL.Image import Image


# A section's file beside its latents: the noise generator's state, the header, and the place of its frames.
_SECTION_EXTRA_BYTES = 16 * 2**10
# What a video says of the run that finished it, and its job does not know before.
_OF_ONE_RUN = {"numerics", "numerics_changes", "versions_changes", "prompt_cuts"}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """How far a job is.

    Attributes:
        num_finished_sections: sections that need not be sampled again.
        num_sections: of the whole job.
        is_done: whether the video was written.
        is_running: whether a process works on it now.
    """

    num_finished_sections: int
    num_sections: int
    is_done: bool
    is_running: bool


class JobFolder:
    """A job on disk. Files appear whole, and what is finished is never written again.

    | file | holds |
    |---|---|
    | job.json | the request, the model, the plan (:class:`~.record.JobRecord`) |
    | image.png, end_image.png, guide_image_0.png | the images as the model sees them |
    | section_0000.safetensors | latents and the state of the noise, after each section |
    | section_0000.json, segments.bin | its encoded frames |
    | redos.json | sections that were made again with another seed or prompt |
    | done.json | where the video is, once it is complete |

    Attributes:
        path: the folder.
        record: what the job is.
        redos: in order of their sections; each of another section.
        sections: files of the finished sections.
    """

    def __init__(self, path: Path, record: JobRecord) -> None:
        """Use :meth:`open` or :meth:`make`."""
        self.path = path
        self.record = record
        self.redos = _read_redos(path / REDOS)
        self.sections = SectionFiles(path, self._origin)

    @staticmethod
    def is_job(path: str | os.PathLike[str]) -> bool:
        """Whether a job is in the folder ``path``."""
        # Not Path.exists, which fails in a folder that may not be read.
        return os.path.lexists(Path(expanded(path)) / RECORD)

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, accepts_changes: bool = False) -> Self:
        """The job in ``path``.

        Args:
            path: the folder.
            accepts_changes: take a job.json that was edited as what is asked for from now on, which the video will tell.

        Raises:
            InputError: there is none, it is damaged or was edited, or another version made it.
        """
        path = Path(expanded(path))
        try:
            text = (path / RECORD).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"{path} is no job folder, its {RECORD} cannot be read: {reason}; isoframe jobs lists the folders"
            ) from error
        record = JobRecord.from_json(text, path, str(path / RECORD), accepts_changes=accepts_changes)
        folder = cls(path, record)
        if accepts_changes:
            with folder._locked(), writing(path):
                write_durably(path / RECORD, record.to_json(path).encode())
        return folder

    @classmethod
    def make(cls, path: str | os.PathLike[str], record: JobRecord, images: Mapping[str, "Image"]) -> Self:
        """A new job in ``path`` with its images by field.

        Raises:
            InputError: other files are there, or nothing can be written.
        """
        path = Path(path)
        check_folder("job", path)
        if path.exists() and not all(_is_unfinished(entry.name, images) for entry in path.iterdir()):
            raise InputError(f"job folder {path} holds other files; choose a new or an empty folder")
        make_folder("job", path, is_private=True)
        with writing(path):
            for field, image in images.items():
                write_durably(image_path(path, field), _png(image))
            # Last: with it the folder is a job.
            write_durably(path / RECORD, record.to_json(path).encode())
        return cls(path, record.kept_in(path))

    def copy(self, path: str | os.PathLike[str], output: Path) -> Self:
        """Copy the job with what is finished of it into a new folder; the copy writes its own video.

        Args:
            path: the new folder.
            output: the new MP4.

        Raises:
            InputError: a process works on this job, or ``path`` cannot be written.
        """
        path = Path(path)
        record = replace(
            self.record, token=secrets.token_hex(4), output=output.absolute(), is_overwriting=False
        )
        make_folder("job", path, is_private=True)
        with self._locked(), writing(path):
            for pattern in (
                *_image_names((*IMAGE_FIELDS, guide_field("*"))),
                REDOS,
                SPOOL,
                *SECTION_FILES,
            ):
                for file in self.path.glob(pattern):
                    shutil.copyfile(file, path / file.name)
            write_durably(path / RECORD, record.to_json(path).encode())
        return self.open(path)

    @contextmanager
    def running(self) -> Iterator[JobRun]:
        """Work on the job: nobody else does meanwhile, and what a killed process left half-written is gone.

        Raises:
            InputError: another process works on it, the folder cannot be written, or its disk is too full.
        """
        if not self.is_job(self.path):
            raise InputError(f"job folder {self.path} was deleted; isoframe jobs lists those that are there")
        check_folder("job", self.path)
        with self._locked():
            # Somebody may have asked for other sections while the job waited.
            self.redos = _read_redos(self.path / REDOS)
            self._remove_leftovers()
            self._check_room()
            run = JobRun(self.path, self.record, self.sections, self.redos)
            try:
                yield run
            finally:
                run.close()

    @property
    def num_sections(self) -> int:
        return self.record.sampling.num_sections

    @property
    def num_encoded(self) -> int:
        """Sections whose frames are encoded, as far as there are any that are final."""
        return self.sections.count_records()

    def status(self) -> JobStatus:
        """How far the job is; asks the files, not the process."""
        return JobStatus(
            num_finished_sections=self.sections.count_latents(self.num_sections),
            num_sections=self.num_sections,
            is_done=(self.path / DONE).exists(),
            is_running=self._is_running(),
        )

    def may_replace(self, video: str | os.PathLike[str]) -> bool:
        """Whether ``video`` is this job's own: the output it may overwrite, or the same video."""
        path = Path(video)
        if path.absolute() == self.record.output and self.record.is_overwriting:
            return True
        try:
            stored = read_video_info(path).metadata
        except InputError:
            return False
        own = json.loads(json.dumps(redone_metadata(self.record, self.redos)))
        return all(stored.get(name) == own.get(name) for name in (stored.keys() | own) - _OF_ONE_RUN)

    def partial(self) -> Path | None:
        """The playable file of what is finished that a run which stopped early has left; None if there is none."""
        return read_partial(self.path, self.record.output)

    def redo(self, section: int, *, seed: int | None = None, prompt: str | None = None) -> None:
        """Have ``section`` (generation order, from 0) and all later ones made again by the next run.

        Redos of later sections are forgotten. One of the same section keeps what is not given anew.

        Raises:
            ConfigError: there is no such section, or nothing would change.
            InputError: a process works on the job, or the folder cannot be written.
        """
        if not 0 <= section < self.num_sections:
            raise ConfigError(f"section must be from 1 to {self.num_sections}, got {section + 1}")
        if seed is None and prompt is None:
            raise ConfigError("redo needs another seed or prompt; without one the same section comes again")
        if seed is not None and not 0 <= seed < 2**63:
            raise ConfigError(f"seed must be from 0 to 2**63 - 1, got {seed}")
        if prompt is not None:
            check_text("prompt", prompt)
            check_notation("prompt", without_times(prompt))
            reprompted(self.record.request, prompt)
        before = next((redo for redo in self.redos if redo.section == section), Redo(section=section))
        redo = Redo(
            section=section,
            seed=before.seed if seed is None else seed,
            prompt=before.prompt if prompt is None else prompt,
        )
        with self.running():
            self._set_redos((*(earlier for earlier in self.redos if earlier.section < section), redo))
            self.sections.remove_from(section)

    def delete(self) -> None:
        """Remove the folder, but not a video that lies in it.

        Raises:
            InputError: a process works on the job.
        """
        # Without its record it is no job any more, whatever happens next.
        with self._locked(), writing(self.path):
            (self.path / RECORD).unlink()
            for entry in self.path.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry.absolute() != self.record.output:
                    entry.unlink()
        if not any(self.path.iterdir()):
            self.path.rmdir()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The folder is this process's alone meanwhile; raises :class:`InputError` where it cannot be."""
        with ExitStack() as stack:
            with writing(self.path / LOCK):
                told = f"job folder {self.path} is in use by another process"
                stack.enter_context(exclusive_lock(self.path / LOCK, told))
            yield

    def _origin(self, section: int) -> str:
        """What of the redos a section depends on."""
        return json.dumps([asdict(redo) for redo in self.redos if redo.section <= section])

    def _set_redos(self, redos: tuple[Redo, ...]) -> None:
        with writing(self.path):
            (self.path / DONE).unlink(missing_ok=True)
            write_durably(self.path / REDOS, seal({"redos": [asdict(redo) for redo in redos]}).encode())
        self.redos = redos

    def _is_running(self) -> bool:
        try:
            with exclusive_lock(self.path / LOCK, ""):
                return False
        except InputError:
            return True
        except OSError:
            # Nobody who can lock it can write to it.
            return False

    def _remove_leftovers(self) -> None:
        beside_video = self.record.output.parent.glob(temporary_name("*", self.record.token))
        for path in (*self.path.glob("*.tmp"), *beside_video):
            with writing(path):
                path.unlink(missing_ok=True)

    def _check_room(self) -> None:
        """Raise :class:`InputError` where the latents of the sections to come do not fit on the disk."""
        height, width = self.record.request.size or (0, 0)
        latents = 4 * 16 * self.record.sampling.latent_window_size * (height // 8) * (width // 8)
        missing = self.num_sections - self.sections.count_latents(self.num_sections)
        needed, free = missing * (latents + _SECTION_EXTRA_BYTES), shutil.disk_usage(self.path).free
        if needed > free:
            raise InputError(
                f"job folder {self.path} needs {needed / 2**20:.0f} MiB for {missing} sections and its disk has "
                f"{free / 2**20:.0f} MiB free; free some space or choose another folder"
            )


def _read_redos(path: Path) -> tuple[Redo, ...]:
    try:
        values = parse_json(path.read_bytes())
        # Version 0.1.0 wrote the list alone.
        redos = values if isinstance(values, list) else unseal_whole(json.dumps(values))["redos"]
        return tuple(Redo(**redo) for redo in redos)
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is damaged ({error}); delete it to have the job as it was asked for"
        ) from error


def _image_names(fields: Iterable[str]) -> tuple[str, ...]:
    return tuple(image_path(Path(), field).name for field in fields)


def _has_finished(path: Path) -> bool:
    try:
        return any(is_finished_name(name) for name in os.listdir(path))
    except NotADirectoryError:
        return False
    except OSError:
        return True


def _is_unfinished(name: str, fields: Iterable[str]) -> bool:
    """Whether a process that was killed before job.json was written may have left ``name`` of images of ``fields``."""
    images = _image_names((*IMAGE_FIELDS, *fields))
    temporary = (temporary_name(whole, "*") for whole in (*images, RECORD))
    return name in {*images, LOCK} or any(fnmatch.fnmatch(name, pattern) for pattern in temporary)


def _png(image: "Image") -> bytes:
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def find_job(name: str, cache_dir: Path, *, accepts_changes: bool = False) -> JobFolder:
    """The job in the folder ``name``, or of this name among those of ``cache_dir``; see :meth:`JobFolder.open`.

    Raises:
        InputError: there is none.
    """
    path = Path(name)
    if not path.exists() and path.name == name and (jobs_path(cache_dir) / name).exists():
        path = jobs_path(cache_dir) / name
    return JobFolder.open(path, accepts_changes=accepts_changes)


def list_jobs(cache_dir: Path) -> Iterator[JobFolder | InputError]:
    """Every job of ``cache_dir`` by name; for one that cannot be read, why not."""
    folder = jobs_path(cache_dir)
    if not folder.is_dir():
        return
    try:
        paths = sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}; check the folder") from error
    for path in paths:
        # What a process leaves that ends before it has written the record is no job; anything else is a damaged one.
        if not JobFolder.is_job(path) and not _has_finished(path):
            continue
        try:
            yield JobFolder.open(path)
        except InputError as error:
            yield error
