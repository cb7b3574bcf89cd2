"""The app's page: fields and pictures, wired to a :class:`Studio`. What they mean is decided there."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from .form_fields import FormFields
from .stage import Stage
from .studio import Studio
from .tabs import build_gallery, build_queue

_REFRESH_SECONDS = 1.0
# Between two looks at the copies that Gradio makes of what it shows, and their longest life.
_CACHE_SECONDS = (600, 4 * 3600)
CSS = """
footer { display: none !important }
.sections svg rect.at-work { animation: isoframe-pulse 1.2s infinite alternate }
@keyframes isoframe-pulse { from { opacity: 1 } to { opacity: .55 } }
#image img, #end-image img { object-fit: contain }
#strip img { width: 100%; height: 64px; object-fit: fill }
#queue-list .wrap { flex-direction: column; align-items: stretch }
#queue-list label span { overflow-wrap: anywhere }
"""


def build_page(studio: Studio, examples: Sequence[tuple[str, str]]) -> Any:
    """The page, a ``gradio.Blocks``.

    Args:
        studio: makes the videos.
        examples: image files and their prompts.
    """
    with gr.Blocks(
        title="Isoframe", analytics_enabled=False, fill_width=True, delete_cache=_CACHE_SECONDS
    ) as page:
        card = studio.service.card
        gr.Markdown(f"### Isoframe: {card.name} in {card.precision} on {card.device}")
        # What this browser looks at survives a reload of the page; it is no secret.
        watched = gr.BrowserState("", storage_key="isoframe-video", secret="isoframe")
        timer = gr.Timer(_REFRESH_SECONDS)
        with gr.Tabs() as tabs:
            with gr.Tab("Make", id="make"), gr.Row():
                with gr.Column(scale=2):
                    form = FormFields(studio, examples)
                with gr.Column(scale=3):
                    Stage(studio).build(watched, timer, form)
            with gr.Tab("Queue", id="queue"):
                build_queue(studio, watched, timer, tabs)
            with gr.Tab("Gallery", id="gallery") as gallery:
                build_gallery(studio, watched, gallery, tabs)
        form.fill_in_on(page.load, watched)
    return page
