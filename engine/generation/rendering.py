"""One video on its way into a file: sections in, MP4, PNG frames and job folder out."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from ..companions.previews import LatentPreviews
from ..errors import ContentError, InputError
from ..events import Event, FileEvent, PartialEvent, PhaseEvent, PreviewEvent, SectionEvent, StepEvent
from ..jobs.run import JobRun
from ..media.latents_file import LatentsWriter, check_resumable
from ..media.png_writer import PngWriter
from ..media.video import Video, VideoWriter
from ..request.config import Request
from ..sampling.denoiser import EventHandler
from .generation import Generation, Section


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rendering:
    """Where the sections of one job go.

    Attributes:
        job: what is made.
        writer: of the MP4.
        run: the job on disk; None keeps nothing.
        png: writer of the single frames, if there are any.
        latents: writer of the latents, if they are asked for.
        report: called with every event.
    """

    job: Generation
    writer: VideoWriter
    run: JobRun | None
    png: PngWriter | None
    latents: LatentsWriter | None = None
    report: EventHandler

    def write(self, sections: Iterator[Section]) -> Video:
        """Write all ``sections``; the video.

        If that stops early, what is finished is left in a playable file, and a note of the exception says so.
        """
        try:
            self._write_earlier_latents()
            for frames, place in self.job.given_frames():
                if self.png is not None:
                    self.png.write(frames, place)
                self.writer.write(frames, place)
            for section in sections:
                self._write_section(section)
                # The next section is decoded before the loop would let go of this one's frames.
                del section
            self.report(PhaseEvent(phase="write"))
            video = self.writer.finish()
            self._finish_latents()
            if self.run is not None:
                self.run.finish(video.path)
        except BaseException as error:
            self._keep_what_is_finished(error)
            raise
        return video

    def _write_earlier_latents(self) -> None:
        """Those of the sections that an earlier run has encoded, which do not come again."""
        if self.latents is None or self.run is None:
            return
        check_resumable(self.run.num_encoded, self.job.sampling.num_sections)
        for index in range(self.run.num_encoded):
            self.latents.write(self.run.latents(index), self.job.first_latent_frame(index))

    def _finish_latents(self) -> None:
        if self.latents is None:
            return
        assert self.job.start_latent is not None, "a section came"
        self.latents.write(self.job.start_latent, 0)
        self.report(FileEvent(path=self.latents.finish()))

    def _write_section(self, section: Section) -> None:
        self.report(PhaseEvent(phase="encode"))
        if self.latents is not None:
            self.latents.write(section.latents, self.job.first_latent_frame(section.index))
        if self.png is not None:
            self.png.write(section.frames, section.first_frame)
        segment = self.writer.write(section.frames, section.first_frame)
        if self.run is not None:
            self.report(PhaseEvent(phase="checkpoint"))
            self.run.keep_segment(section.index, segment)
        self.report(
            SectionEvent(
                section=section.index,
                num_sections=self.job.sampling.num_sections,
                num_final_frames=self.writer.num_final_frames,
                num_frames=self.job.num_frames,
            )
        )

    def _keep_what_is_finished(self, error: BaseException) -> None:
        """Leave a playable file of a job that stops early, and say so in a note of ``error``."""
        run, job = self.run, self.job
        if run is not None:
            error.add_note(f"finished sections are kept in {run.path}; to go on: isoframe resume {run.path}")
        is_refused = isinstance(error, ContentError)
        try:
            # A filter that refused a frame would refuse it again.
            provisional = None if is_refused else job.provisional()
            if provisional is None and not (is_refused and self.writer.num_final_frames):
                return
            earlier = None if run is None else run.partial()
            preview = None if provisional is None else (provisional.frames, provisional.first_frame)
            video = self.writer.write_partial(earlier, preview=preview)
            if run is not None:
                run.note_partial(video.path)
        except (InputError, ContentError) as failure:
            error.add_note(f"the finished part could not be kept: {failure}")
            return
        error.add_note(f"{video.num_frames} of {job.num_frames} frames are kept in {video.path}")
        self.report(
            PartialEvent(path=video.path, num_frames=video.num_frames, num_video_frames=job.num_frames)
        )


def open_writer(
    request: Request,
    job: Generation,
    path: str | os.PathLike[str],
    metadata: dict[str, object],
    *,
    overwrite: bool,
    run: JobRun | None,
) -> VideoWriter:
    """The writer of the MP4; with ``run`` it has the segments of earlier runs, and the metadata of the job."""
    return VideoWriter(
        path,
        height=job.images.size[0],
        width=job.images.size[1],
        fps=request.fps,
        crf=request.crf,
        codec=request.codec,
        num_frames=job.num_frames,
        metadata=metadata if run is None else run.metadata,
        overwrite=overwrite,
        kept=None if run is None else run.segments,
    )


def open_png(
    png_dir: str | os.PathLike[str] | None, job: Generation, writer: VideoWriter, overwrite: bool
) -> PngWriter | None:
    """The writer of single frames; None without a folder."""
    if png_dir is None:
        return None
    return PngWriter(png_dir, num_frames=job.num_frames, metadata=writer.metadata, overwrite=overwrite)


def open_latents(
    path: str | os.PathLike[str] | None, job: Generation, writer: VideoWriter, overwrite: bool
) -> AbstractContextManager[LatentsWriter | None]:
    """The writer of the latents; None without a path."""
    if path is None:
        return nullcontext()
    num_frames = 1 + job.sampling.num_sections * job.sampling.latent_window_size
    return LatentsWriter(path, num_frames=num_frames, metadata=writer.metadata, overwrite=overwrite)


def reporter(
    on_event: EventHandler | None,
    preview_dir: str | os.PathLike[str] | None,
    latent_rgb: Callable[[], Tensor],
) -> EventHandler:
    """Passes events on; with a ``preview_dir`` it draws each step, in the colours of ``latent_rgb``."""
    previews = None if preview_dir is None else LatentPreviews(preview_dir, latent_rgb())

    def report(event: Event) -> None:
        if on_event is not None:
            on_event(event)
        if previews is not None and isinstance(event, StepEvent):
            preview = PreviewEvent(path=previews.write(event), section=event.section, step=event.step)
            if on_event is not None:
                on_event(preview)

    return report
