"""The tab with what runs and waits."""

from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from .refusals import act_on, watch
from .studio import Studio

if TYPE_CHECKING:
    from ..server.status import VideoStatus


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
        entries = [(_queue_line(studio, status), status.id) for status, _ in studio.service.queue()]
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


def _queue_line(studio: Studio, status: "VideoStatus") -> str:
    return f"{studio.title(status)}: {studio.describe(status)}"
