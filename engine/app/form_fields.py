"""The left side of the page: what can be asked for."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import gradio as gr

from ..errors import IsoframeError
from .form import Form
from .studio import QUALITIES, Studio, draw_seed

_PATTERN = "[subject] [action] [secondary motion] [style]"
_TIMES = "[0s] she sits [2.4s] she waves"


def build_fields(studio: Studio, examples: Sequence[tuple[str, str]], max_seconds: float) -> list[Any]:
    """The form on the left; its fields in the order of :class:`Form`."""
    image = gr.Image(type="filepath", label="Start image", height=260, elem_id="image")
    prompt = gr.Textbox(
        label="Prompt",
        placeholder=_PATTERN,
        info=f"What happens: {_PATTERN}; or what happens when: {_TIMES}",
        lines=2,
        elem_id="prompt",
    )
    is_text_alone = gr.Checkbox(
        label="Text alone: no start image, which image-to-video models were not trained for",
        elem_id="text-alone",
    )
    if examples:
        gr.Examples([list(example) for example in examples], [image, prompt], label="Examples")
    seconds = gr.Slider(0.5, max_seconds, value=5, step=0.1, label="Seconds", elem_id="seconds")
    with gr.Row():
        seed = gr.Number(31337, label="Seed", precision=0, minimum=0, elem_id="seed")
        gr.Button("Draw a seed", min_width=110, scale=0, elem_id="dice").click(draw_seed, outputs=seed)
    quality = gr.Radio(list(QUALITIES), value="balanced", label="Quality", elem_id="quality")
    with gr.Accordion("Advanced", open=False):
        first = QUALITIES["balanced"]
        steps = gr.Slider(1, 100, value=first["num_steps"], step=1, label="Steps", elem_id="steps")
        cache = gr.Radio(
            ["none", "teacache", "magcache"],
            value=str(first["step_cache"]),
            label="Step cache",
            info="Skips steps that would change little: faster, approximate.",
        )
        guidance = gr.Slider(1, 32, value=10, step=0.1, label="Guidance")
        order = gr.Radio(
            ["auto", "inverted", "forward"], value="auto", label="Order", info="inverted makes the end first"
        )
        end_image = gr.Image(
            type="filepath", label="End image (inverted order)", height=160, elem_id="end-image"
        )
        end_strength = gr.Slider(0, 1, value=1, step=0.05, label="Strength of the end image")
        guides, guide_times = _guide_fields()
        apply_limits = _budget_fields(studio)
    quality.change(lambda name: tuple(QUALITIES[name].values()), quality, [steps, cache])
    names = list(studio.service.card.loras)
    loras = gr.Dropdown(names, value=[], multiselect=True, label="LoRAs", visible=bool(names))
    strength = gr.Slider(-2, 2, value=1, step=0.05, label="Strength of the LoRAs", visible=bool(names))
    fields: list[Any] = [
        image,
        prompt,
        seconds,
        seed,
        steps,
        cache,
        guidance,
        order,
        loras,
        strength,
        end_image,
        end_strength,
        is_text_alone,
        guides,
        guide_times,
    ]
    _tell_plan(studio, fields, apply_limits)
    return fields


def _tell_plan(studio: Studio, fields: list[Any], apply_limits: Any) -> None:
    """One line under the form that follows every change of it and of the limits."""
    plan = gr.Markdown(elem_id="plan")

    def describe(*values: Any) -> str:
        return studio.describe_plan(read_form(values))

    # One event for all of them: what an earlier change asked for never comes after what a later one did.
    changes = [field.change for field in fields]
    gr.on(changes, describe, fields, plan, show_progress="hidden", trigger_mode="always_last")
    apply_limits.then(describe, fields, plan, show_progress="hidden")


def _guide_fields() -> tuple[Any, Any]:
    """Images and their times."""
    images = gr.File(
        label="Guide images", file_count="multiple", file_types=["image"], height=120, elem_id="guide-images"
    )
    times = gr.Textbox(
        label="Times of the guide images in seconds",
        info="From then on they take the place of the start image; no published model was trained with that.",
        placeholder="2.4, 4.8",
        elem_id="guide-times",
    )
    return images, times


def _budget_fields(studio: Studio) -> Any:
    """Limits of the engine, for all browsers; the event after which they hold."""
    told = gr.Markdown(f"Budget: {studio.budget}", elem_id="budget")
    with gr.Row():
        is_cpu = studio.service.card.device == "cpu"
        vram = gr.Textbox(label="VRAM", placeholder="6GiB", visible=not is_cpu, elem_id="vram")
        ram = gr.Textbox(label="RAM", placeholder="16GiB", elem_id="ram")
        use = gr.Button("Use this budget", size="sm", elem_id="use-budget")

    def apply(vram: str, ram: str) -> str:
        try:
            return f"Budget: {studio.set_budget(vram, ram)}"
        except IsoframeError as error:
            raise gr.Error(str(error), print_exception=False) from error

    return use.click(apply, [vram, ram], told)


def read_form(values: Sequence[Any]) -> Form:
    """The fields of the page, which come in the order of those of the form."""
    names = [field.name for field in dataclasses.fields(Form)]
    return Form(**dict(zip(names, values, strict=True)))
