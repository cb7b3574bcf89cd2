"""The tab with what runs and waits."""

from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from .refusals import act_on
from .studio import Studio

if TYPE_CHECKING:
    from ..server.status import VideoStatus


def build_queue(studio: Studio, watched: Any, timer: Any) -> None:
    """What runs and waits, for all browsers."""
    choice = gr.Radio([], label="At work, then waiting in this order", elem_id="queue-list")
    shown = gr.State([])
    with gr.Row():
        first = gr.Button("First", size="sm")
        last = gr.Button("Last", size="sm")
        cancel = gr.Button("Cancel this one", size="sm", elem_id="queue-cancel")
        watch = gr.Button("Watch", size="sm")

    def refresh(before: list[tuple[str, str]]) -> tuple[Any, Any]:
        entries = [(_queue_line(studio, status), status.id) for status, _ in studio.service.queue()]
        same = entries == [tuple(entry) for entry in before]
        return (gr.skip(), gr.skip()) if same else (gr.update(choices=entries), entries)

    timer.tick(refresh, shown, [choice, shown], show_progress="hidden", concurrency_limit=None)
    first.click(partial(act_on, partial(studio.move, is_to_front=True)), choice)
    last.click(partial(act_on, partial(studio.move, is_to_front=False)), choice)
    cancel.click(partial(act_on, studio.service.cancel), choice)
    watch.click(lambda name: name or "", choice, watched)


def _queue_line(studio: Studio, status: "VideoStatus") -> str:
    return f"{status.prompt[:60]} ({status.seconds:.1f} s) - {studio.describe(status)}"
