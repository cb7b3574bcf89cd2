"""One job from options to file: what ``generate`` and ``demo`` share."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ....errors import ConfigError
from ....files import check_folder, check_latents_path, check_png_folder, check_video_path
from ....request.config import EngineConfig, Request
from .failures import Interrupt, lasting_interrupt

if TYPE_CHECKING:
    from ....engine import Engine
    from ....generation.frame_filter import FrameFilter
    from ....media.video import Video
    from .progress import Reporter


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """What to make, with what, and where to put it.

    Attributes:
        request: the job.
        model: "demo", a Hub id, a folder or a file.
        config: what the engine may use.
        components: other sources of companion models, by name.
        out: the MP4.
        is_overwriting: whether ``out`` may exist.
        preview_dir: folder for pictures of the run.
        png_dir: folder for every frame as PNG.
        latents: file for the latents.
        frame_filter: "module:function" that every frame passes through.
        is_reporting_error: measure the step cache afterwards.
        job_dir: folder that keeps the job.
        traces: files for the timeline of the weights.
        is_json: progress as JSON on stdout.
        is_quiet: no progress.
    """

    request: Request
    model: str
    config: EngineConfig
    components: Mapping[str, str] = field(default_factory=dict)
    out: Path
    is_overwriting: bool = False
    preview_dir: Path | None = None
    png_dir: Path | None = None
    latents: Path | None = None
    frame_filter: str | None = None
    is_reporting_error: bool = False
    job_dir: Path | None = None
    traces: tuple[Path, ...] = ()
    is_json: bool = False
    is_quiet: bool = False

    def run(self) -> None:
        """Check the paths, load the engine, render, and say where the video is."""
        start = time.perf_counter()
        try:
            video = self._make()
        except KeyboardInterrupt as interrupt:
            if not getattr(interrupt, "__notes__", ()):
                interrupt.add_note("no frame of the video was finished, and no video file was written")
            raise
        if not (self.is_json or self.is_quiet):
            length = f"{video.num_frames} frames, {video.seconds:.1f} s"
            size = f"{video.height}x{video.width} (height x width)"
            typer.echo(f"{video.path}: {length}, {size}, made in {time.perf_counter() - start:.1f} s")

    def _make(self) -> "Video":
        self._check_paths()
        from ....generation.frame_filter import load_filter
        from ....media.images import load_image
        from .progress import make_reporter

        # The image is read again by the engine; a bad one must not cost the loading of a model.
        guides = [guide.image for guide in self.request.guide_images]
        for image in (self.request.image, self.request.end_image, *guides):
            if image is not None:
                load_image(image, force=self.request.force)
        frame_filter = None if self.frame_filter is None else load_filter(self.frame_filter)
        with (
            lasting_interrupt() as interrupt,
            make_reporter(fps=self.request.fps, is_json=self.is_json, is_quiet=self.is_quiet) as reporter,
        ):
            return self._render(reporter, interrupt, frame_filter)

    def _check_paths(self) -> None:
        if self.is_reporting_error and self.request.step_cache == "none":
            raise ConfigError("--report-error needs a step cache: --step-cache magcache or --preset draft")
        check_video_path(self.out, overwrite=self.is_overwriting)
        if self.preview_dir is not None:
            check_folder("preview", self.preview_dir)
        if self.png_dir is not None:
            check_png_folder(self.png_dir, overwrite=self.is_overwriting)
        if self.latents is not None:
            check_latents_path(self.latents, overwrite=self.is_overwriting)
        if self.job_dir is not None:
            check_folder("job", self.job_dir)
        if self.traces:
            from ....weights.timeline_file import check_timeline_path

            for path in self.traces:
                check_timeline_path(path)

    def _render(
        self, reporter: "Reporter", interrupt: Interrupt, frame_filter: "FrameFilter | None"
    ) -> "Video":
        from .... import Engine
        from ....events import ConversionEvent, Event, PartialEvent, PhaseEvent
        from ....weights.conversion import ConversionProgress
        from .progress import conversion_bar

        def on_event(event: Event) -> None:
            # That event comes because of an interrupt.
            if not isinstance(event, PartialEvent):
                interrupt.check()
            reporter.on_event(event)

        on_event(PhaseEvent(phase="load"))
        with conversion_bar(is_quiet=self.is_quiet or self.is_json) as show:

            def on_conversion(progress: ConversionProgress) -> None:
                show(progress)
                on_event(ConversionEvent(**asdict(progress)))

            engine = Engine.load(
                self.model,
                config=self.config,
                components=self.components,
                size=self.request.size,
                on_conversion=on_conversion,
                frame_filter=frame_filter,
            )
        with engine:
            if self.traces:
                engine.trace()
            video = engine.render(
                self.request,
                self.out,
                overwrite=self.is_overwriting,
                on_event=on_event,
                preview_dir=self.preview_dir,
                png_dir=self.png_dir,
                job_dir=self.job_dir,
                latents_path=self.latents,
            )
            self._write_traces(engine)
            if self.is_reporting_error:
                typer.echo(str(engine.step_cache_error(self.request)), err=self.is_json)
            return video

    def _write_traces(self, engine: "Engine") -> None:
        """The video is there: that nothing was copied is no failure."""
        try:
            for path in self.traces:
                engine.write_trace(path)
        except ConfigError as error:
            typer.echo(f"no trace: {error}", err=True)
