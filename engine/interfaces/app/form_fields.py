"""The left side of the page: what can be asked for."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import gradio as gr

from ...request.fields import Offered
from .form import PLAIN, Form
from .refusals import leave_unchecked, told
from .studio import QUALITIES, Studio, draw_seed

_PATTERN = "[subject] [action] [secondary motion] [style]"
_TIMES = "[0s] she sits [2.4s] she waves"
_QUALITY = "balanced"
_NAMES = [field.name for field in dataclasses.fields(Form)]


class FormFields:
    """The fields of a :class:`Form`, what they come to, and the button that has it made.

    Attributes:
        fields: in the order of those of the form.
        make: the button.
    """

    def __init__(self, studio: Studio, examples: Sequence[tuple[str, str]]) -> None:
        """Add the fields to the page.

        Args:
            studio: says what a form comes to.
            examples: image files and their prompts.
        """
        self._studio = studio
        made = _start_fields(examples)
        made["seconds"] = gr.Slider(
            0.5, studio.service.limits.seconds, value=5, step=0.1, label="Seconds", elem_id="seconds"
        )
        with gr.Row(equal_height=True):
            dice = gr.Button("Draw", size="sm", elem_id="dice", render=False)
            seed = gr.Number(31337, label="Seed", precision=0, min_width=150, buttons=[dice], elem_id="seed")
            self._quality = gr.Radio(
                list(QUALITIES), value=_QUALITY, label="Quality", min_width=320, scale=4, elem_id="quality"
            )
        made["seed"] = seed
        dice.click(draw_seed, outputs=seed)
        plan = gr.Markdown(elem_id="plan")
        self.make = gr.Button("Generate", variant="primary", elem_id="generate")
        with gr.Accordion("Advanced", open=False):
            made |= _advanced_fields(list(studio.service.card.loras))
            apply_limits = _budget_fields(studio)
            with gr.Accordion("More", open=False):
                made |= {name: _plain_field(known) for name, known in PLAIN.items() if name not in made}
        self.fields: list[Any] = [made[name] for name in _NAMES]
        for field in self.fields:
            if isinstance(field, (gr.Image, gr.Slider)):
                leave_unchecked(field)
        chosen = [made["num_steps"], made["step_cache"]]
        self._quality.input(lambda name: tuple(QUALITIES[name].values()), self._quality, chosen)
        # One event for all of them: what an earlier change asked for never comes after what a later one did.
        changes = [field.change for field in self.fields]
        gr.on(changes, self._describe, self.fields, plan, show_progress="hidden", trigger_mode="always_last")
        apply_limits.then(self._describe, self.fields, plan, show_progress="hidden")

    def fill_in_on(self, event: Any, watched: Any) -> None:
        """Fill in what the watched video was made with, if there is one."""
        # Two steps: gr.skip() has Gradio make the fields anew, with its own checks, and what is answered with their old
        # values would undo what was typed meanwhile.
        event(self._check, watched).success(
            self._values, watched, [*self.fields, self._quality], show_progress="hidden"
        )

    def _check(self, name: str) -> None:
        if self._studio.find(name) is None:
            raise gr.Error("no video is watched", visible=False, print_exception=False)

    def _values(self, name: str) -> list[Any]:
        form = self._studio.form(name)
        values = [getattr(form, name) for name in _NAMES]
        chosen = {"num_steps": form.num_steps, "step_cache": form.step_cache}
        return [*values, next((quality for quality, options in QUALITIES.items() if options == chosen), None)]

    def _describe(self, *values: Any) -> str:
        return self._studio.describe_plan(read_form(values))


def read_form(values: Sequence[Any]) -> Form:
    """The fields of the page, which come in the order of those of the form."""
    return Form(**dict(zip(_NAMES, values, strict=True)))


def _plain_field(known: Offered, value: Any = None) -> Any:
    """What the description of a field comes to on a page; it begins with ``value``, or with the field's default."""
    about, label = known.setting, known.name.replace("_", " ").capitalize()
    value = known.default if value is None else value
    common = dict(value=value, label=label, info=known.help, elem_id=known.name.replace("_", "-"))
    if about.choices:
        return gr.Radio(list(about.choices), **common)
    if known.type in (bool, str):
        return gr.Checkbox(**common) if known.type is bool else gr.Textbox(**common)
    return gr.Number(**common, precision=None if known.type is float else 0)


def _start_fields(examples: Sequence[tuple[str, str]]) -> dict[str, Any]:
    image = gr.Image(type="filepath", label="Start image", height=220, elem_id="image")
    prompt = gr.Textbox(
        label="Prompt",
        placeholder=_PATTERN,
        info=f"What happens: {_PATTERN}; or what happens when: {_TIMES}",
        lines=2,
        max_lines=6,
        elem_id="prompt",
    )
    if examples:
        labels = [prompt for _, prompt in examples]
        gr.Examples(
            [list(example) for example in examples], [image, prompt], example_labels=labels, label="Examples"
        )
    is_text_alone = gr.Checkbox(
        label="Text alone: no start image, which image-to-video models were not trained for",
        elem_id="text-alone",
    )
    return {"image": image, "prompt": prompt, "is_text_alone": is_text_alone}


def _advanced_fields(lora_names: list[str]) -> dict[str, Any]:
    """The fields of a form with words and bounds of their own that few people change."""
    first, has_loras = QUALITIES[_QUALITY], bool(lora_names)
    return {
        "num_steps": gr.Slider(1, 100, value=first["num_steps"], step=1, label="Steps", elem_id="steps"),
        "step_cache": _plain_field(PLAIN["step_cache"], first["step_cache"]),
        "guidance_scale": gr.Slider(1, 32, value=10, step=0.1, label="Guidance"),
        "order": _plain_field(PLAIN["order"]),
        "end_image": gr.Image(
            type="filepath", label="End image (inverted order)", height=160, elem_id="end-image"
        ),
        "end_image_strength": gr.Slider(0, 1, value=1, step=0.05, label="Strength of the end image"),
        "guide_images": gr.File(
            label="Guide images",
            file_count="multiple",
            file_types=["image"],
            height=120,
            elem_id="guide-images",
        ),
        "guide_times": gr.Textbox(
            label="Times of the guide images in seconds",
            info="From then on they take the place of the start image; no published model was trained with that.",
            placeholder="2.4, 4.8",
            elem_id="guide-times",
        ),
        "loras": gr.Dropdown(lora_names, value=[], multiselect=True, label="LoRAs", visible=has_loras),
        "lora_strength": gr.Slider(
            -2, 2, value=1, step=0.05, label="Strength of the LoRAs", visible=has_loras
        ),
    }


def _budget_fields(studio: Studio) -> Any:
    """Limits of the engine, for all browsers; the event after which they hold."""
    budget = gr.Markdown(f"Budget: {studio.budget}", elem_id="budget")
    with gr.Row():
        is_cpu = studio.service.card.device == "cpu"
        vram = gr.Textbox(label="VRAM", placeholder="6GiB", visible=not is_cpu, elem_id="vram")
        ram = gr.Textbox(label="RAM", placeholder="16GiB", elem_id="ram")
        use = gr.Button("Use this budget", size="sm", elem_id="use-budget")

    def apply(vram: str, ram: str) -> str:
        return f"Budget: {told(studio.set_budget, vram, ram)}"

    return use.click(apply, [vram, ram], budget)
