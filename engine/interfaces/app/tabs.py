"""The tabs of the page on all videos: what runs and waits, and what was made."""

from functools import partial
from typing import Any

import gradio as gr

from .refusals import act_on, chosen, started, told, watch
from .studio import Studio


def build_queue(studio: Studio, watched: Any, timer: Any, tabs: Any) -> None:
    """What runs and waits, for all browsers."""
    choice = gr.Radio([], label="At work, then waiting in this order", elem_id="queue-list")
    nothing = gr.Markdown("Nothing is made and nothing waits.", elem_id="queue-empty")
    shown = gr.State([])
    with gr.Row():
        watching = gr.Button("Watch", size="sm", elem_id="queue-watch")
        first = gr.Button("To the front", size="sm", elem_id="queue-first")
        last = gr.Button("To the back", size="sm", elem_id="queue-last")
        cancel = gr.Button("Cancel this one", size="sm", elem_id="queue-cancel")

    def refresh(before: list[tuple[str, str]], name: str | None) -> tuple[Any, ...]:
        queue = [status for status, _ in studio.service.queue()]
        entries = [(f"{studio.title(status)}: {studio.describe(status)}", status.id) for status in queue]
        if entries == [tuple(entry) for entry in before]:
            return gr.skip(), gr.skip(), gr.skip()
        left = {} if name in [entry for _, entry in entries] else {"value": None}
        return gr.update(choices=entries, **left), gr.update(visible=not entries), entries

    timer.tick(
        refresh, [shown, choice], [choice, nothing, shown], show_progress="hidden", concurrency_limit=None
    )
    first.click(partial(act_on, partial(studio.move, is_to_front=True)), choice)
    last.click(partial(act_on, partial(studio.move, is_to_front=False)), choice)
    cancel.click(partial(act_on, studio.service.cancel), choice)
    watching.click(watch, choice, [watched, tabs])


def build_gallery(studio: Studio, watched: Any, tab: Any, tabs: Any) -> None:
    """The videos of all browsers that neither run nor wait."""
    gr.Markdown("What is done, paused, cancelled or failed, the newest first.")
    gallery = gr.Gallery(
        show_label=False, columns=6, height=260, allow_preview=False,
        object_fit="contain", fit_columns=False, elem_id="gallery-list", buttons=[],
    )  # fmt: skip
    names = gr.State([])
    choice = gr.State("")
    with gr.Row():
        watching = gr.Button("Watch", size="sm", elem_id="gallery-watch")
        reproduce = gr.Button("Reproduce", size="sm", elem_id="gallery-reproduce")
        reload = gr.Button("Reload", size="sm", elem_id="gallery-reload")
        delete = gr.Button("Delete", size="sm", variant="stop", elem_id="gallery-delete")
    with gr.Row(visible=False) as question:
        sure = gr.Button("Delete it for good", size="sm", variant="stop", elem_id="gallery-delete-sure")
        keep = gr.Button("Keep it", size="sm", elem_id="gallery-keep")
    with gr.Row():
        video = gr.Video(label="Video", interactive=False, height=420, elem_id="gallery-video")
        facts = gr.JSON(label="How it was made", height=420, elem_id="gallery-facts")

    def refresh() -> tuple[Any, Any]:
        found = studio.gallery()
        shown = [(studio.thumbnail(status), studio.caption(status)) for status in found]
        return shown, [status.id for status in found]

    def choose(known: list[str], event: gr.SelectData) -> tuple[Any, ...]:
        def look() -> tuple[Any, ...]:
            status = studio.service.get(name)
            return name, studio.show(studio.video(status)), studio.facts(status), gr.update(visible=False)

        name = known[event.index]
        return told(look)

    def again(name: str) -> tuple[str, Any]:
        return watch(started(studio.reproduce, chosen(name)))

    def remove(name: str) -> tuple[Any, ...]:
        act_on(studio.delete, name)
        return "", None, None, gr.update(visible=False), *refresh()

    for moment in (reload.click, tab.select):
        moment(refresh, outputs=[gallery, names])
    gallery.select(choose, names, [choice, video, facts, question])
    reproduce.click(again, choice, [watched, tabs])
    watching.click(watch, choice, [watched, tabs])
    delete.click(lambda name: gr.update(visible=bool(chosen(name))), choice, question)
    keep.click(lambda: gr.update(visible=False), outputs=question)
    sure.click(remove, choice, [choice, video, facts, question, gallery, names])
