"""What the app shows and does; it knows no page."""

import filecmp
import io
import logging
import secrets
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...errors import BudgetError, ConfigError, InputError, IsoframeError
from ...files import write_durably
from ...jobs.playable import write_playable
from ...jobs.run import Redo
from ...jobs.state import JobState
from ...media.source_video import first_frame
from ...media.video import read_video_info
from ...request.config import PRESETS, Request
from ...request.sections import plan_sections
from ...request.sizes import format_size
from ..server.videos.errors import UnknownVideoError
from ..server.videos.service import VideoService
from ..server.videos.status import VideoStatus
from .drawings import EMPTY, SectionBar, compose_strip
from .form import Form, whole, whole_text
from .memory_history import MemoryHistory
from .shown_files import ShownFiles

if TYPE_CHECKING:
    from PIL.Image import Image

    from ...engine import Engine

_logger = logging.getLogger(__name__)
_MAX_SEED = 2**31
QUALITIES = PRESETS


class Studio:
    """Makes videos for the pages of any number of browsers, which share the queue and the gallery.

    Attributes:
        service: the videos.
        memory: of this process, over the last minutes.
    """

    def __init__(self, service: VideoService, engine: "Engine", shown: ShownFiles) -> None:
        """``service`` makes its videos with ``engine``; both are closed by the caller. Pages see files in ``shown``."""
        self.service = service
        self._shown = shown
        self.memory = MemoryHistory(engine.device)
        self._engine = engine
        # Of every video its encoded sections, and a file that plays them.
        self._playable: dict[str, tuple[int, Path | None]] = {}
        # Videos that are made a second time, and the first ones; then what came of comparing them.
        self._originals: dict[str, str] = {}
        self._comparisons: dict[str, str] = {}

    def close(self) -> None:
        """Stop looking at the memory."""
        self.memory.close()

    def create(self, form: Form) -> VideoStatus:
        """Have a video made.

        Raises:
            IsoframeError: it is refused; the message is for the page.
        """
        request = form.to_request()
        try:
            return self.service.create(request, has_previews=True)
        except InputError as error:
            raise InputError(form.name_files(str(error))) from error

    def form(self, name: str) -> Form:
        """The form that asks for a video once more.

        Raises:
            UnknownVideoError: there is none of this id.
        """
        form = Form.of_request(self.service.folder(name).record.request)
        loaded = [lora for lora in form.loras if lora in self.service.card.loras]
        guides = [shown for image in form.guide_images or () if (shown := self.show(image)) is not None]
        return replace(
            form,
            loras=loaded,
            image=self.show(form.image),
            end_image=self.show(form.end_image),
            guide_images=guides,
        )

    def describe_plan(self, form: Form) -> str:
        """Whether the video fits the budget and how long it takes, in one line."""
        try:
            request = form.to_request()
            self.service.limits.check(request)
            plan = self._engine.plan(request)
        except BudgetError as error:
            return f"Does not fit: {error}"
        except IsoframeError as error:
            return form.name_files(str(error))
        memory = plan.ram if plan.is_cpu else plan.vram
        kind = "RAM" if plan.is_cpu else "VRAM"
        needed = plan.peak + (plan.host.total if plan.is_cpu else 0)
        return (
            f"Fits: {needed / 2**30:.2f} of {memory / 2**30:.1f} GiB {kind}; {plan.num_frames} frames in "
            f"{_count(len(plan.sections), 'section')}, about {plan.seconds_per_frame:.2g} s per frame, "
            f"{_duration(plan.seconds)} on {plan.card.name}{_changes(request)}"
        )

    def set_budget(self, vram: str, ram: str) -> str:
        """Have other limits for the videos to come; says which hold now.

        Args:
            vram: such as "6GiB"; empty keeps it.
            ram: such as "16GiB"; empty keeps it.

        Raises:
            ConfigError: a limit is more than the machine has.
        """
        self._engine.set_budget(vram=vram.strip() or None, ram=ram.strip() or None)
        return self.budget

    @property
    def budget(self) -> str:
        """The limits that hold for the videos to come."""
        machine = self._engine.machine
        ram = f"{format_size(machine.ram)} of RAM"
        return ram if machine.is_cpu else f"{format_size(machine.vram)} of VRAM, {ram}"

    def find(self, name: str) -> VideoStatus | None:
        """How a video stands; None if it is not there (any more)."""
        try:
            return self.service.get(name)
        except UnknownVideoError:
            return None

    def sections(self, status: VideoStatus) -> list[SectionBar]:
        """The sections of a video in video time, and the frames that it was made to follow or to lead to."""
        record, fps = self.service.folder(status.id).record, status.fps
        num_frames = 4 * record.sampling.latent_window_size
        # The first frame, the start image, belongs to the section that follows it.
        before = max(record.num_leading - 1, 0)
        bars = []
        for index, plan in enumerate(plan_sections(record.sampling)):
            first = before + 4 * (plan.first_latent_frame - 1)
            state = "done" if index < status.num_finished_sections else "waiting"
            if index == status.num_finished_sections and status.state is JobState.RUNNING:
                state = "at work"
            end = (first + num_frames) / fps
            bars.append(SectionBar(number=index + 1, start=first / fps, end=end, state=state))
        made_end = before + num_frames * record.sampling.num_sections
        for start, end in ((0, before), (made_end, status.num_frames - 1)):
            if end > start:
                bars.append(SectionBar(number=0, start=start / fps, end=end / fps, state="given"))
        return sorted(bars, key=lambda bar: bar.start)

    def show(self, path: Path | str | None) -> str | None:
        """Where pages find a file; None for none, and for one that somebody removed."""
        try:
            return None if path is None else str(self._shown.show(Path(path)))
        except FileNotFoundError:
            return None

    def strip(self, status: VideoStatus) -> "Image | None":
        """Pictures of the latents in video time; None before the first step."""
        window = self.service.folder(status.id).record.sampling.latent_window_size
        # As wide as in the bar of the sections below it.
        spans = [
            (None, round((bar.end - bar.start) * status.fps / 4))
            if bar.state == "given"
            else (bar.number - 1, window)
            for bar in self.sections(status)
        ]
        return compose_strip(self.service.folder(status.id).path / "previews", spans, window)

    def video(self, status: VideoStatus) -> Path | None:
        """The video, or while it is made what is finished of it; None if that is nothing."""
        folder = self.service.folder(status.id)
        if status.state is JobState.DONE:
            _, played = self._playable.pop(status.id, (0, None))
            if played is not None:
                played.unlink(missing_ok=True)
            return self.service.video_path(status.id)
        if not status.state.is_under_way and (partial := folder.partial()) is not None:
            return partial
        num_encoded, path = self._playable.get(status.id, (0, None))
        if folder.num_encoded > num_encoded:
            num_encoded, before = folder.num_encoded, path
            # Another name for other content: a browser keeps what it has of a name.
            path = folder.path / f"finished_{num_encoded:04d}.mp4"
            path = path if write_playable(folder, path) else None
            if before is not None:
                before.unlink(missing_ok=True)
            self._playable[status.id] = num_encoded, path
        return path

    def title(self, status: VideoStatus) -> str:
        """Which video it is, in one line."""
        redone = "".join(f", {_redone(redo)}" for redo in status.redos)
        return f"{_shortened(status.prompt, 100)} ({status.seconds:.1f} s, seed {status.seed}{redone})"

    def caption(self, status: VideoStatus) -> str:
        """Which video it is, in a few words for the gallery; what differs between videos of one prompt comes first."""
        made = time.strftime("%H:%M", time.localtime(status.created))
        state = "" if status.state is JobState.DONE else f"{status.state}, "
        state += "redone, " if status.redos else ""
        return f"{state}{status.seconds:.1f} s, {made}: {_shortened(status.prompt, 40)}"

    def describe(self, status: VideoStatus) -> str:
        """What happens to a video, and what whoever asked for it should know, in one line."""
        return "; ".join((self._state(status), *status.notes))

    def _state(self, status: VideoStatus) -> str:
        if status.failure is not None:
            return f"Failed: {status.failure.message}"
        share = f"{status.num_finished_sections} of {status.num_sections} sections"
        if status.state is JobState.RUNNING:
            left = "" if status.seconds_left is None else f", {_duration(status.seconds_left)} left"
            # The open edge of a section changes when the next one is blended in.
            is_blank = status.num_finished_sections > 0 and self.service.folder(status.id).num_encoded == 0
            return f"At work: {share}{left}{'; the first frames follow with the next section' if is_blank else ''}"
        if status.state is JobState.QUEUED:
            names = [queued.id for queued, _ in self.service.queue()]
            ahead = names.index(status.id) if status.id in names else 0
            return f"Waits behind {_count(ahead, 'other')}"
        if status.state is JobState.DONE:
            return f"Done: {status.num_frames} frames, {status.seconds:.1f} s{self._comparison(status)}"
        return f"{status.state.capitalize()}: {share} are kept"

    def redo(self, name: str, section: float | None, seed: str = "", prompt: str = "") -> VideoStatus:
        """Make a section and all later ones again, as a new video.

        Args:
            name: id of the video.
            section: from 1, in the order of making.
            seed: of that section's noise; empty keeps it if there is a prompt, and draws another one if there is none.
            prompt: from that section on; empty keeps it.

        Raises:
            IsoframeError: it is refused.
        """
        given = prompt if prompt.strip() else None
        if seed.strip():
            chosen: int | None = whole_text("seed", seed)
        else:
            chosen = draw_seed() if given is None else None
        return self.service.redo(name, whole("section", section) - 1, seed=chosen, prompt=given)

    def extend(self, name: str, seconds: float, *, is_before: bool) -> VideoStatus:
        """Make a finished video longer, as a new one that begins or ends with all of its frames.

        What is added has the published history: another schedule or order of the shorter video may have no section see
        the given frames.

        Args:
            name: id of the video.
            seconds: to add.
            is_before: add what comes before it instead of what comes after.

        Raises:
            IsoframeError: it is refused.
        """
        path = self.service.keep(self.service.video_path(name))
        request = replace(
            self.service.folder(name).record.request,
            image=None,
            video=path,
            seconds=seconds,
            direction="backward" if is_before else "forward",
            order="inverted" if is_before else "forward",
            seed=draw_seed(),
            end_image=None,
            end_image_use="first-section",
            loop=False,
            latent_paddings=None,
            section_order=None,
            schedule=None,
            history_codebook=None,
            prompt_spans=(),
            guide_images=(),
        )
        return self.service.create(request, has_previews=True)

    def reproduce(self, name: str) -> VideoStatus:
        """Make a video a second time, to be compared with the first.

        Raises:
            IsoframeError: it is refused.
        """
        status = self.service.reproduce(name)
        self._originals[status.id] = name
        return status

    def move(self, name: str, *, is_to_front: bool) -> None:
        """Have a video that waits come first or last.

        Raises:
            ConfigError: it does not wait.
        """
        status = self.service.get(name)
        if status.state is not JobState.QUEUED:
            raise ConfigError(f"only a video that waits can be moved, this one is {status.state}")
        priorities = [priority for _, priority in self.service.queue()]
        self.service.prioritize(
            name, max(priorities, default=0) + 1 if is_to_front else min(priorities, default=0) - 1
        )

    def delete(self, name: str) -> None:
        """Remove a video and its files."""
        self._playable.pop(name, None)
        self.service.delete(name)

    def gallery(self, limit: int = 60) -> list[VideoStatus]:
        """The newest videos that neither run nor wait: done, paused, cancelled or failed."""
        found = self.service.page(limit=limit)
        return [status for status in found if not status.state.is_under_way]

    def thumbnail(self, status: VideoStatus) -> "str | Image":
        """The start image, the first frame of a video that was made from text alone, or grey while it has none."""
        from PIL import Image

        try:
            path = self._picture(status)
        except (IsoframeError, OSError) as error:
            _logger.warning("video %s has no thumbnail: %s", status.id, error)
            path = None
        return self.show(path) or Image.new("RGB", (64, 64), EMPTY)

    def _picture(self, status: VideoStatus) -> Path | None:
        folder = self.service.folder(status.id).path
        if (start := folder / "image.png").exists():
            return start
        path = folder / "thumbnail.png"
        if not path.exists() and status.state is JobState.DONE:
            picture = io.BytesIO()
            first_frame(self.service.video_path(status.id)).save(picture, format="PNG")
            # Other browsers may read it meanwhile.
            write_durably(path, picture.getvalue())
        return path

    def facts(self, status: VideoStatus) -> dict[str, object]:
        """How a video was made: what its file says, or for want of one what was asked for."""
        if status.state is JobState.DONE:
            return read_video_info(self.service.video_path(status.id)).metadata
        return dict(self.service.folder(status.id).record.metadata)

    def _comparison(self, status: VideoStatus) -> str:
        original = self._originals.get(status.id)
        if original is None or self.find(original) is None:
            return ""
        if status.id not in self._comparisons:
            first, second = (self.service.video_path(name) for name in (original, status.id))
            is_same = filecmp.cmp(first, second, shallow=False)
            told = "the same file, bit for bit" if is_same else "NOT the same file as the first one"
            self._comparisons[status.id] = f"; {told}"
        return self._comparisons[status.id]


def _changes(request: Request) -> str:
    """In words, when prompts and guide images change after snapping to sections, in seconds of video."""
    stretches = request.prompt_timeline().stretches
    told = {
        "prompts change": [stretch.first_section for stretch in stretches[1:]],
        "guide images": request.guide_places,
    }
    return "".join(
        f"; {name} at " + ", ".join(f"{request.section_seconds(place):.2f}" for place in places) + " s"
        for name, places in told.items()
        if places
    )


def draw_seed() -> int:
    """A seed that was not asked for."""
    return secrets.randbelow(_MAX_SEED)


def _redone(redo: Redo) -> str:
    """From where on a section and later ones were made again, and with what."""
    seed = "" if redo.seed is None else f" with seed {redo.seed}"
    prompt = "" if redo.prompt is None else f": {_shortened(redo.prompt, 60)}"
    return f"redone from section {redo.section + 1}{seed}{prompt}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min" if hours else f"{minutes}:{rest:02d} min" if minutes else f"{rest} s"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
