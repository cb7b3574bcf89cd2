"""One job from options to file: what ``generate`` and ``demo`` share."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from ..config import EngineConfig, Request
from ..outputs import check_folder, check_video_path, partial_path
from .interrupt import lasting_interrupt

if TYPE_CHECKING:
    from ..video import Video
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
    is_json: bool = False
    is_quiet: bool = False

    def run(self) -> None:
        """Check the paths, load the engine, render, and say where the video is."""
        start = time.perf_counter()
        check_video_path(self.out, overwrite=self.is_overwriting)
        for purpose, folder in (("preview", self.preview_dir), ("PNG", self.png_dir)):
            if folder is not None:
                check_folder(purpose, folder)
        from ..images import load_image
        from .progress import make_reporter

        # The image is read again by the engine; a bad one must not cost the loading of a model.
        load_image(self.request.image, force=self.request.force)
        partial, before = partial_path(self.out), _modified(partial_path(self.out))
        try:
            with (
                lasting_interrupt() as raise_if_interrupted,
                make_reporter(fps=self.request.fps, is_json=self.is_json, is_quiet=self.is_quiet) as reporter,
            ):
                video = self._render(reporter, raise_if_interrupted)
        except BaseException as error:
            if _modified(partial) != before:
                error.add_note(f"what was finished is in {partial}")
            raise
        if not (self.is_json or self.is_quiet):
            size, seconds = f"{video.width}x{video.height}", time.perf_counter() - start
            length = f"{video.num_frames} frames, {video.seconds:.1f} s"
            typer.echo(f"{video.path}: {length}, {size}, made in {seconds:.1f} s")

    def _render(self, reporter: "Reporter", raise_if_interrupted: Callable[[], None]) -> "Video":
        from .. import Engine
        from ..events import Event, PhaseEvent

        def on_event(event: Event) -> None:
            raise_if_interrupted()
            reporter.on_event(event)

        on_event(PhaseEvent(phase="load"))
        engine = Engine.load(self.model, config=self.config, components=self.components)
        return engine.render(
            self.request,
            self.out,
            overwrite=self.is_overwriting,
            on_event=on_event,
            preview_dir=self.preview_dir,
            png_dir=self.png_dir,
        )


def _modified(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None
