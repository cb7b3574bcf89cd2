"""The right side of the page: the video that this browser watches."""

from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import IsoframeError
from ...jobs.state import JobState
from .drawings import draw_memory, draw_progress, draw_sections
from .form_fields import FormFields, read_form
from .refusals import act_on, started
from .studio import Studio

if TYPE_CHECKING:
    from ..server.videos.status import VideoStatus


class Stage:
    """The right side: one video, its progress, and what can be done with it."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def build(self, watched: Any, timer: Any, form: FormFields) -> None:
        """Add the right side to the page."""
        progress = gr.HTML(elem_id="progress")
        strip = gr.Image(
            label="Preview in video time", interactive=False, height=110, elem_id="strip", buttons=[]
        )
        sections = gr.HTML(elem_id="sections", elem_classes="sections")
        video = gr.Video(
            label="Video", interactive=False, autoplay=True, loop=True, height=420, elem_id="video"
        )
        service = self._studio.service
        actions = {"Cancel": service.cancel, "Pause": service.pause, "Resume": service.resume}
        with gr.Row():
            buttons = [gr.Button(name, elem_id=name.lower(), size="sm") for name in actions]
            take = gr.Button("Use its settings", elem_id="use-settings", size="sm")
        with gr.Accordion("Redo from a section", open=False):
            section = gr.Number(
                1, precision=0, minimum=1, label="Section, by its number above", elem_id="redo-section"
            )
            # An empty number would be sent as 0.
            seed = gr.Textbox(
                label="Another seed", placeholder="drawn, unless there is another prompt", elem_id="redo-seed"
            )
            prompt = gr.Textbox(label="Another prompt from there on")
            redo = gr.Button("Redo from here", elem_id="redo", size="sm")
        with gr.Accordion("Make it longer", open=False), gr.Row():
            seconds = gr.Number(2.4, minimum=0.5, label="Seconds to add", elem_id="extend-seconds")
            side = gr.Radio(["after", "before"], value="after", label="Where")
            extend = gr.Button("Make it longer", elem_id="extend", size="sm")
        memory = gr.HTML(elem_id="memory")

        shown = gr.State({})
        outputs = [shown, progress, strip, sections, video, memory, *buttons, redo, extend, take]
        refresh = dict(fn=self.refresh, inputs=[watched, shown], outputs=outputs, show_progress="hidden")
        timer.tick(**refresh, concurrency_limit=None)
        watched.change(**refresh, concurrency_limit=None)
        form.make.click(partial(started, self._create), form.fields, watched)
        form.fill_in_on(take.click, watched)
        for button, action in zip(buttons, actions.values(), strict=True):
            button.click(partial(act_on, action), watched)
        redo.click(partial(started, self._studio.redo), [watched, section, seed, prompt], watched)
        extend.click(partial(started, self._extend), [watched, seconds, side], watched)

    def refresh(self, name: str, shown: dict[str, Any]) -> list[Any]:
        """New values for what changed since this page was last told."""
        studio, status = self._studio, self._studio.find(name)
        now: dict[str, Any] = {"memory": draw_memory(studio.memory.samples())}
        now |= {"progress": "", "strip": None, "sections": "", "video": None}
        if status is not None:
            try:
                now |= self._look(status)
            except IsoframeError as error:
                # Somebody removed a file.
                now["progress"] = draw_progress(status.progress, str(error))
        signatures = {key: _signature(value) for key, value in now.items()}
        keys = ("progress", "strip", "sections", "video", "memory")
        changed = [now[key] if shown.get(key) != signatures[key] else gr.skip() for key in keys]
        signatures["possible"] = possible = _possible(status)
        is_new = shown.get("possible") != possible
        buttons = [gr.update(interactive=value) if is_new else gr.skip() for value in possible]
        return [signatures, *changed, *buttons]

    def _look(self, status: "VideoStatus") -> dict[str, Any]:
        return {
            "progress": draw_progress(
                status.progress, self._studio.describe(status), title=self._studio.title(status)
            ),
            "sections": draw_sections(self._studio.sections(status), order=status.order),
            "strip": self._studio.strip(status),
            "video": self._studio.show(self._studio.video(status)),
        }

    def _create(self, *values: Any) -> "VideoStatus":
        return self._studio.create(read_form(values))

    def _extend(self, name: str, seconds: float, side: str) -> "VideoStatus":
        return self._studio.extend(name, seconds, is_before=side == "before")


def _possible(status: "VideoStatus | None") -> tuple[bool, ...]:
    """Whether a video can be cancelled, paused, taken up again, redone, made longer and taken as an example."""
    if status is None:
        return (False,) * 6
    state = status.state
    return (
        state.is_under_way or state is JobState.PAUSED,
        state.is_under_way,
        state.can_resume,
        not state.is_under_way,
        state is JobState.DONE,
        True,
    )


def _signature(value: Any) -> Any:
    """What tells two values of an output apart; pictures by their pixels."""
    return hash(value.tobytes()) if hasattr(value, "tobytes") else value
