"""The right side of the page: the video that this browser watches."""

from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from ...errors import IsoframeError
from ...jobs.state import JobState
from .drawings import draw_memory, draw_progress, draw_sections
from .form_fields import FormFields, read_form
from .refusals import act_on, told
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
        with gr.Row():
            buttons = {
                name: gr.Button(name, elem_id=name.lower().replace(" ", "-"), size="sm")
                for name in ("Cancel", "Pause", "Resume")
            }
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
        outputs = [shown, progress, strip, sections, video, memory, *buttons.values(), redo, extend, take]
        refresh = dict(fn=self.refresh, inputs=[watched, shown], outputs=outputs, show_progress="hidden")
        timer.tick(**refresh, concurrency_limit=None)
        watched.change(**refresh, concurrency_limit=None)
        form.make.click(self._create, form.fields, watched)
        form.fill_in_on(take.click, watched)
        actions = {
            "Cancel": self._studio.service.cancel,
            "Pause": self._studio.service.pause,
            "Resume": self._studio.service.resume,
        }
        for name, action in actions.items():
            buttons[name].click(partial(act_on, action), watched)
        redo.click(self._redo, [watched, section, seed, prompt], watched)
        extend.click(self._extend, [watched, seconds, side], watched)

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

    def _create(self, *values: Any) -> str:
        return told(self._studio.create, read_form(values)).id

    def _redo(self, name: str, section: float | None, seed: str, prompt: str) -> str:
        return told(self._studio.redo, name, section, seed, prompt).id

    def _extend(self, name: str, seconds: float, side: str) -> str:
        return told(self._studio.extend, name, seconds, is_before=side == "before").id


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
