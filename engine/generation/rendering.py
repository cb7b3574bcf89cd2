"""One video on its way into a file: sections in, MP4, PNG frames, latents and job folder out."""

import itertools
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Self

from torch import Tensor

from ..device import machine_errors
from ..errors import ContentError
from ..events import (
    Event,
    EventHandler,
    FileEvent,
    PartialEvent,
    PhaseEvent,
    PreviewEvent,
    SectionEvent,
    StepEvent,
)
from ..files import KeptOutputError
from ..jobs.folder import JobFolder
from ..jobs.metadata import FILE_FIELDS
from ..jobs.record import JobRecord, ModelSource
from ..jobs.run import JobRun, UnkeptRun
from ..media.codecs import VideoFormat
from ..media.latents_file import LatentsWriter, check_resumable
from ..media.png_writer import PngWriter
from ..media.previews import LatentPreviews
from ..media.video import Video, VideoWriter
from ..output_paths import check_apart, check_extras, check_video_path
from ..request.config import Request
from ..request.fields import settle_values
from .generation import Generation, Section, ignore, open_generation
from .loaded_model import LoadedModel
from .numerics import changed_numerics, changed_versions, computing_with, recorded_numerics

AnyPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """Where the files of a job go; :meth:`Engine.render` describes them.

    Attributes:
        path: the MP4; None is video.mp4 in the job's folder, or where a job that is continued was to write.
        overwrite: whether files may be replaced.
        preview_dir: folder for pictures of the latents.
        png_dir: folder for every frame as PNG.
        job_dir: folder that keeps what is finished.
        latents_path: file for the latents.
    """

    path: AnyPath | None
    overwrite: bool = False
    preview_dir: AnyPath | None = None
    png_dir: AnyPath | None = None
    job_dir: AnyPath | None = None
    latents_path: AnyPath | None = None

    def __post_init__(self) -> None:
        settle_values(self, "path", "preview_dir", "png_dir", "job_dir", "latents_path")

    def named(self) -> frozenset[str]:
        """The files and folders that are asked for by name, whatever links lead there."""
        paths = (self.path, self.png_dir, self.latents_path)
        return frozenset(os.path.realpath(path) for path in paths if path is not None)

    def check(self, request: Request) -> None:
        """Raise :class:`InputError` unless all can be written, and none of them is a file of ``request``."""
        check_extras(self.png_dir, self.latents_path, overwrite=self.overwrite)
        if self.path is not None:
            # A job may replace its own video.
            check_video_path(Path(self.path), overwrite=self.overwrite or self.job_dir is not None)
        given = [getattr(request, name) for name in FILE_FIELDS]
        given += [guide.image for guide in request.guide_images] + [lora.source for lora in request.loras]
        frames = [] if self.png_dir is None else Path(self.png_dir).glob("frame_*.png")
        files = [Path(path) for path in (self.path, self.latents_path) if path is not None]
        check_apart([*files, *frames], given)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rendering:
    """A job that is read, planned and kept in its folder; :meth:`write` makes its files when its turn has come.

    Attributes:
        job: what makes the video, once.
        path: the MP4.
        outputs: the other files.
        metadata: of the video.
        folder: what is kept of the job; None keeps nothing.
    """

    job: Generation
    path: Path
    outputs: Outputs
    metadata: Mapping[str, object]
    folder: JobFolder | None

    @classmethod
    def of(
        cls,
        request: Request,
        outputs: Outputs,
        model: LoadedModel,
        source: ModelSource,
        folder: JobFolder | None = None,
        numerics: Mapping[str, object] = MappingProxyType({}),
    ) -> Self:
        """Read and plan a job; with a ``job_dir``, keep it there, or go on with the one that is there.

        Args:
            request: the video.
            outputs: where its files go.
            model: what makes it.
            source: of the model, for a later process.
            folder: of the job, where it is open already.
            numerics: that are wanted, where no folder says it.

        Raises:
            InputError: the output or the folder cannot be used, or the folder holds another job.
            BudgetError: the job does not fit.
        """
        job_dir = outputs.job_dir
        if job_dir is not None and folder is None and JobFolder.is_job(job_dir):
            folder = JobFolder.open(job_dir)
        if folder is not None:
            numerics = recorded_numerics(folder.record.metadata)
        outputs.check(request)
        job = open_generation(request, model, numerics)
        inputs, metadata = job.inputs, job.metadata()
        path = outputs.path
        if path is None:
            assert job_dir is not None, "a job without a folder has a path"
            path = Path(job_dir) / "video.mp4" if folder is None else folder.record.output
        path = Path(path)
        if job_dir is not None:
            if not (outputs.overwrite or (folder is not None and folder.may_replace(path))):
                check_video_path(path, overwrite=False)
            record = JobRecord(
                token=secrets.token_hex(4),
                source=source,
                request=replace(
                    inputs.request, size=inputs.images.size, base_resolution=None, order=inputs.sampling.order
                ),
                sampling=inputs.sampling,
                metadata=metadata,
                output=path.absolute(),
                num_frames=inputs.num_frames,
                num_leading=inputs.num_leading,
                is_overwriting=outputs.overwrite,
                vae_tile=job.memory.plan.vae_tile,
            )
            if folder is None:
                folder = JobFolder.make(job_dir, record, inputs.images.by_field())
            else:
                folder.record.check_same(record, folder.path)
        return cls(job=job, path=path, outputs=outputs, metadata=metadata, folder=folder)

    def write(self, on_event: EventHandler | None = None) -> Video:
        """Make the video.

        If that stops early, what is finished is left in a playable file, and a note of the exception says so.
        """
        report = self._reporter(on_event or ignore)
        with (
            machine_errors("the video"),
            computing_with(self.job.numerics),
            self._open_run() as run,
            self._open_files(run, report) as files,
            closing(self.job.sections(report, run)) as sections,
        ):
            try:
                files.begin()
                for section in sections:
                    files.write(section)
                    # The next section is decoded before the loop would let go of this one's frames.
                    del section
                video = files.finish()
            except BaseException as error:
                files.keep_what_is_finished(error)
                raise
        report(FileEvent(path=video.path))
        return video

    def _open_run(self) -> AbstractContextManager[JobRun | UnkeptRun]:
        if self.folder is None:
            return nullcontext(UnkeptRun(self.job.inputs.request, self.metadata))
        # The job ends with the tiles that it began with, whatever memory there is now.
        self.job.memory.keep_tile(self.folder.record.vae_tile)
        return self.folder.running()

    @contextmanager
    def _open_files(self, run: JobRun | UnkeptRun, report: EventHandler) -> Iterator["_Files"]:
        """The writers, which go on where an earlier run stopped; left early, they leave no unfinished file."""
        inputs, outputs, metadata = self.job.inputs, self.outputs, self._video_metadata(run)
        video_format = VideoFormat.of(inputs.request, inputs.images.size)
        is_own = self.folder is not None and self.folder.may_replace(self.path)
        with ExitStack() as stack:
            writer = VideoWriter(
                self.path, video_format, num_frames=inputs.num_frames, metadata=metadata, overwrite=outputs.overwrite or is_own,
                kept=run.segments,
            )  # fmt: skip
            stack.enter_context(writer)
            latents = png = None
            if outputs.latents_path is not None:
                num_latents = 1 + inputs.sampling.num_sections * inputs.sampling.latent_window_size
                latents = stack.enter_context(
                    LatentsWriter(
                        outputs.latents_path, num_frames=num_latents, metadata=metadata,
                        overwrite=outputs.overwrite,
                    )
                )  # fmt: skip
            if outputs.png_dir is not None:
                png = PngWriter(
                    outputs.png_dir, num_frames=inputs.num_frames, metadata=metadata,
                    overwrite=outputs.overwrite,
                )  # fmt: skip
            yield _Files(job=self.job, run=run, writer=writer, png=png, latents=latents, report=report)

    def _video_metadata(self, run: JobRun | UnkeptRun) -> dict[str, object]:
        """The metadata of the video: with the numerics of this run, and what it changed where it goes on.

        Versions stay those with which the job began.
        """
        if run.num_encoded == self.job.inputs.sampling.num_sections:
            return dict(run.metadata)
        changes = {
            "numerics_changes": changed_numerics(recorded_numerics(run.metadata), self.job.numerics),
            "versions_changes": changed_versions(run.metadata),
        }
        told = {name: list(found) for name, found in changes.items() if found and run.sampled.num_sections}
        self.job.changes = tuple(itertools.chain.from_iterable(told.values()))
        # Not copies: the attention and the cuts are filled in before the first section is made, and written after it.
        return {**run.metadata, "numerics": self.job.numerics, "prompt_cuts": self.job.cuts, **told}

    def _reporter(self, on_event: EventHandler) -> EventHandler:
        """Passes events on; with a ``preview_dir`` it draws each step."""
        if self.outputs.preview_dir is None:
            return on_event
        previews = LatentPreviews(self.outputs.preview_dir, self.job.model.latent_rgb())

        def report(event: Event) -> None:
            on_event(event)
            if isinstance(event, StepEvent):
                on_event(PreviewEvent(path=previews.write(event), section=event.section, step=event.step))

        return report


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Files:
    """The open files of a job at work.

    Attributes:
        job: what is made.
        run: what is kept of it.
        writer: of the MP4.
        png: writer of the single frames, if they are asked for.
        latents: writer of the latents, if they are asked for.
        report: called with every event.
    """

    job: Generation
    run: JobRun | UnkeptRun
    writer: VideoWriter
    png: PngWriter | None
    latents: LatentsWriter | None
    report: EventHandler

    def begin(self) -> None:
        """Write what is there before the first section: an earlier run's latents, and the video that is extended."""
        if self.latents is not None and self.run.num_encoded:
            check_resumable(self.run.num_encoded, self.job.inputs.sampling.num_sections)
            for index in range(self.run.num_encoded):
                self._write_latents(index, self.run.latents(index))
        for frames, place in self.job.given_frames():
            if self.png is not None:
                self.png.write(frames, place)
            self.writer.write(frames, place)

    def write(self, section: Section) -> None:
        """Encode a section and keep it."""
        self.report(PhaseEvent(phase="encode"))
        self._write_latents(section.index, section.latents)
        if self.png is not None:
            self.png.write(section.frames, section.first_frame)
        segment = self.writer.write(section.frames, section.first_frame)
        self.run.keep_segment(section.index, segment, self.report)
        self.report(
            SectionEvent(
                section=section.index,
                num_sections=self.job.inputs.sampling.num_sections,
                num_final_frames=self.writer.num_final_frames,
                num_frames=self.job.inputs.num_frames,
            )
        )

    def finish(self) -> Video:
        """Put the files together."""
        self.report(PhaseEvent(phase="write"))
        video = self.writer.finish()
        self.run.finish(video.path)
        if self.latents is not None:
            assert self.job.start_latent is not None, "a section came"
            self.latents.write(self.job.start_latent, 0)
            self.report(FileEvent(path=self.latents.finish()))
        return video

    def keep_what_is_finished(self, error: BaseException) -> None:
        """Leave a playable file of a job that stops early, and say so in a note of ``error``."""
        self.run.explain(error)
        if self.writer.is_finished:
            error.add_note(f"the video itself is whole: {self.writer.path}")
            return
        if isinstance(error, KeptOutputError):
            return
        provisional = None
        # A filter that refused a frame would refuse it again.
        has_more = not isinstance(error, ContentError)
        if has_more:
            try:
                provisional = self.job.provisional()
            except BaseException as failure:
                # What failed in the section may fail again; what was finished before is to be kept all the same.
                has_more = False
                error.add_note(f"the last frames could not be kept: {failure}")
        try:
            if provisional is None and (has_more or not self.writer.num_final_frames):
                return
            preview = None if provisional is None else (provisional.frames, provisional.first_frame)
            video = self.writer.write_partial(self.run.partial(), preview=preview)
            self.run.note_partial(video.path)
        except KeptOutputError as failure:
            error.add_note(f"the finished part: {failure}")
            return
        except Exception as failure:
            error.add_note(f"the finished part could not be kept: {failure}")
            return
        num_frames = self.job.inputs.num_frames
        error.add_note(f"{video.num_frames} of {num_frames} frames are kept in {video.path}")
        self.report(PartialEvent(path=video.path, num_frames=video.num_frames, num_video_frames=num_frames))

    def _write_latents(self, section: int, latents: Tensor) -> None:
        if self.latents is not None:
            self.latents.write(latents, self.job.inputs.sections[section].first_latent_frame)
