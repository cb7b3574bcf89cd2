"""The tab with what was made."""

from typing import Any

import gradio as gr

from ..errors import IsoframeError
from .refusals import act_on, started
from .studio import Studio


def build_gallery(studio: Studio, watched: Any, tab: Any) -> None:
    """The finished videos of all browsers."""
    reload = gr.Button("Reload", size="sm", elem_id="gallery-reload")
    gallery = gr.Gallery(
        label="Videos", columns=6, height=260, allow_preview=False, object_fit="contain", fit_columns=False,
        elem_id="gallery-list", buttons=[],
    )  # fmt: skip
    names = gr.State([])
    chosen = gr.State("")
    with gr.Row():
        video = gr.Video(label="Video", interactive=False, elem_id="gallery-video")
        facts = gr.JSON(label="How it was made", elem_id="gallery-facts")
    with gr.Row():
        reproduce = gr.Button("Reproduce", size="sm", elem_id="gallery-reproduce")
        watch = gr.Button("Watch", size="sm", elem_id="gallery-watch")
        delete = gr.Button("Delete", size="sm", variant="stop", elem_id="gallery-delete")

    def refresh() -> tuple[Any, Any]:
        found = studio.finished()
        pictures = [(str(studio.thumbnail(status)), status.prompt[:40]) for status in found]
        return pictures, [status.id for status in found]

    def choose(known: list[str], event: gr.SelectData) -> tuple[Any, ...]:
        name = known[event.index]
        try:
            return name, str(studio.service.video_path(name)), studio.facts(name)
        except IsoframeError as error:
            raise gr.Error(str(error), print_exception=False) from error

    def remove(name: str) -> tuple[Any, ...]:
        act_on(studio.delete, name)
        return "", None, None, *refresh()

    for moment in (reload.click, tab.select):
        moment(refresh, outputs=[gallery, names])
    gallery.select(choose, names, [chosen, video, facts])
    reproduce.click(lambda name: started(lambda: studio.reproduce(name)), chosen, watched)
    watch.click(lambda name: name, chosen, watched)
    delete.click(remove, chosen, [chosen, video, facts, gallery, names])
