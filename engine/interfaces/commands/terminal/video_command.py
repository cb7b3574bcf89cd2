"""One video from options to file: what ``generate``, ``demo``, ``resume`` and ``redo`` share."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ....errors import ConfigError
from ....output_paths import check_folder, check_latents_path, check_png_folder, check_video_path
from ....request.config import EngineConfig, Request
from .interrupt import Interrupt
from .options import OutputOptions
from .printing import echo

if TYPE_CHECKING:
    from ....engine import Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoCommand:
    """What to make, with what, and where to put it.

    Attributes:
        request: the job.
        model: "demo", a Hub id, a folder or a file.
        config: what the engine may use.
        components: other sources of companion models, by name.
        out: the MP4.
        outputs: what else is written, and what is said.
        is_reporting_error: measure the step cache afterwards.
        job_dir: folder that keeps the job.
    """

    request: Request
    model: str
    config: EngineConfig
    components: Mapping[str, str] = field(default_factory=dict)
    out: Path
    outputs: OutputOptions
    is_reporting_error: bool = False
    job_dir: Path | None = None

    def run(self, interrupt: Interrupt) -> None:
        """Check the paths, load the engine, render, and say where the video is."""
        start = time.perf_counter()
        self._check_paths()
        from .... import Engine
        from ....events import ConversionEvent, Event, PartialEvent, PhaseEvent
        from ....generation.frame_filter import load_filter
        from ....media.given import read_images
        from .progress import conversion_bar, reporting

        outputs = self.outputs
        with ExitStack() as opened:
            opened.push(_note_that_nothing_is_made)
            # A bad image must not cost the loading of a model.
            request = read_images(self.request)
            frame_filter = None if outputs.frame_filter is None else load_filter(outputs.frame_filter)
            is_silent = outputs.quiet or outputs.json_progress
            report = opened.enter_context(
                reporting(fps=request.fps, is_json=outputs.json_progress, is_quiet=outputs.quiet)
            )

            def on_event(event: Event) -> None:
                # That event comes because of an interrupt.
                if not isinstance(event, PartialEvent):
                    interrupt.check()
                report(event)

            on_event(PhaseEvent(phase="load"))
            with conversion_bar(is_quiet=is_silent) as show:

                def on_conversion(progress: ConversionEvent) -> None:
                    show(progress)
                    on_event(progress)

                engine = opened.enter_context(
                    Engine.load(
                        self.model, config=self.config, components=self.components, size=request.size,
                        on_conversion=on_conversion, frame_filter=frame_filter,
                    )
                )  # fmt: skip
            if outputs.trace:
                engine.trace()
            video = engine.render(
                request, self.out, overwrite=outputs.overwrite, on_event=on_event, preview_dir=outputs.preview,
                png_dir=outputs.png, job_dir=self.job_dir, latents_path=outputs.latents,
            )  # fmt: skip
            self._write_traces(engine)
            if self.is_reporting_error:
                echo(str(engine.step_cache_error(request)), err=outputs.json_progress)
        if not is_silent:
            length = f"{video.num_frames} frames, {video.seconds:.1f} s"
            size = f"{video.height}x{video.width} (height x width)"
            echo(f"{video.path}: {length}, {size}, made in {time.perf_counter() - start:.1f} s")

    def _check_paths(self) -> None:
        outputs = self.outputs
        if self.is_reporting_error and self.request.step_cache == "none":
            raise ConfigError("--report-error needs a step cache: --step-cache magcache or --preset draft")
        check_video_path(self.out, overwrite=outputs.overwrite)
        if outputs.preview is not None:
            check_folder("preview", outputs.preview)
        if outputs.png is not None:
            check_png_folder(outputs.png, overwrite=outputs.overwrite)
        if outputs.latents is not None:
            check_latents_path(outputs.latents, overwrite=outputs.overwrite)
        if self.job_dir is not None:
            check_folder("job", self.job_dir)
        if outputs.trace:
            from ....weights.timeline_file import check_timeline_path

            for path in outputs.trace:
                check_timeline_path(path)

    def _write_traces(self, engine: "Engine") -> None:
        """The video is there: that nothing was copied is no failure."""
        try:
            for path in self.outputs.trace or ():
                engine.write_trace(path)
        except ConfigError as error:
            echo(f"no trace: {error}", err=True)


def _note_that_nothing_is_made(_: object, error: BaseException | None, __: object) -> None:
    """The engine notes what a job that is stopped has kept."""
    if isinstance(error, KeyboardInterrupt) and not getattr(error, "__notes__", ()):
        error.add_note("no frame of the video was finished, and no video file was written")
