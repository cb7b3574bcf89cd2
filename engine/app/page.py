"""The app's page: fields and pictures, wired to a :class:`Studio`. What they mean is decided there."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import gradio as gr

from ..errors import IsoframeError
from .drawings import draw_memory, draw_progress, draw_sections
from .studio import QUALITIES, Form, Studio, draw_seed

if TYPE_CHECKING:
    from ..server.status import VideoStatus

_REFRESH_SECONDS = 1.0
# Between two looks at the copies that Gradio makes of what it shows, and their longest life.
_CACHE_SECONDS = (600, 4 * 3600)
_PATTERN = "[subject] [action] [secondary motion] [style]"
_TIMES = "[0s] she sits [2.4s] she waves"
CSS = """
footer { display: none !important }
.sections svg rect.at-work { animation: isoframe-pulse 1.2s infinite alternate }
@keyframes isoframe-pulse { from { opacity: 1 } to { opacity: .55 } }
"""


def build_page(studio: Studio, examples: Sequence[tuple[str, str]], *, max_seconds: float) -> Any:
    """The page, a ``gradio.Blocks``.

    Args:
        studio: makes the videos.
        examples: image files and their prompts.
        max_seconds: of a video.
    """
    with gr.Blocks(
        title="Isoframe", analytics_enabled=False, fill_width=True, delete_cache=_CACHE_SECONDS
    ) as page:
        card = studio.service.card
        gr.Markdown(f"# Isoframe\n{card.name} in {card.precision} on {card.device}")
        # What this browser looks at survives a reload of the page; it is no secret.
        watched = gr.BrowserState("", storage_key="isoframe-video", secret="isoframe")
        timer = gr.Timer(_REFRESH_SECONDS)
        with gr.Tab("Make", id="make"), gr.Row():
            with gr.Column(scale=2):
                fields = _fields(studio, examples, max_seconds)
            with gr.Column(scale=3):
                _Stage(studio).build(watched, timer, fields)
        with gr.Tab("Queue", id="queue"):
            _build_queue(studio, watched, timer)
        with gr.Tab("Gallery", id="gallery") as gallery:
            _build_gallery(studio, watched, gallery)
    return page


def _fields(studio: Studio, examples: Sequence[tuple[str, str]], max_seconds: float) -> list[Any]:
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
        guides = gr.File(
            label="Guide images, which take the place of the start image later (no published model was trained with them)",
            file_count="multiple",
            file_types=["image"],
            height=120,
            elem_id="guide-images",
        )
        guide_times = gr.Textbox(
            label="Times of the guide images in seconds", placeholder="2.4, 4.8", elem_id="guide-times"
        )
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
    plan = gr.Markdown(elem_id="plan")

    def describe(*values: Any) -> str:
        return studio.describe_plan(_form(values))

    for field in fields:
        field.change(describe, fields, plan, show_progress="hidden")
    apply_limits.then(describe, fields, plan, show_progress="hidden")
    return fields


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


class _Stage:
    """The right side: one video, its progress, and what can be done with it."""

    def __init__(self, studio: Studio) -> None:
        self._studio = studio

    def build(self, watched: Any, timer: Any, fields: Sequence[Any]) -> None:
        """Add it to the page."""
        make = gr.Button("Generate", variant="primary", elem_id="generate")
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
                for name in ("Cancel", "Pause", "Go on")
            }
        with gr.Accordion("Redo from a section", open=False):
            section = gr.Number(
                1, precision=0, minimum=1, label="Section, by its number above", elem_id="redo-section"
            )
            seed = gr.Number(None, precision=0, label="Another seed (drawn if this and the prompt are empty)")
            prompt = gr.Textbox(label="Another prompt from there on")
            redo = gr.Button("Redo from here", elem_id="redo", size="sm")
        with gr.Accordion("Make it longer", open=False), gr.Row():
            seconds = gr.Number(2.4, minimum=0.5, label="Seconds to add", elem_id="extend-seconds")
            side = gr.Radio(["after", "before"], value="after", label="Where")
            extend = gr.Button("Make it longer", elem_id="extend", size="sm")
        memory = gr.HTML(elem_id="memory")

        shown = gr.State({})
        outputs = [shown, progress, strip, sections, video, memory, *buttons.values(), redo, extend]
        refresh = dict(fn=self.refresh, inputs=[watched, shown], outputs=outputs, show_progress="hidden")
        timer.tick(**refresh, concurrency_limit=None)
        watched.change(**refresh, concurrency_limit=None)
        make.click(self._create, fields, watched)
        actions = {
            "Cancel": self._studio.service.cancel,
            "Pause": self._studio.service.pause,
            "Go on": self._studio.service.go_on,
        }
        for name, action in actions.items():
            buttons[name].click(partial(_act, action), watched)
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
        path = self._studio.video(status)
        return {
            "progress": draw_progress(status.progress, self._studio.describe(status)),
            "sections": draw_sections(self._studio.sections(status), order=status.order),
            "strip": self._studio.strip(status),
            "video": None if path is None else str(path),
        }

    def _create(self, *values: Any) -> str:
        return _shown(lambda: self._studio.create(_form(values)))

    def _redo(self, name: str, section: float | None, seed: float | None, prompt: str) -> str:
        return _shown(lambda: self._studio.redo(name, section, seed, prompt))

    def _extend(self, name: str, seconds: float, side: str) -> str:
        return _shown(lambda: self._studio.extend(name, seconds, is_before=side == "before"))


def _build_queue(studio: Studio, watched: Any, timer: Any) -> None:
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
    first.click(partial(_act, partial(studio.move, is_to_front=True)), choice)
    last.click(partial(_act, partial(studio.move, is_to_front=False)), choice)
    cancel.click(partial(_act, studio.service.cancel), choice)
    watch.click(lambda name: name or "", choice, watched)


def _queue_line(studio: Studio, status: "VideoStatus") -> str:
    return f"{status.prompt[:60]} ({status.seconds:.1f} s) - {studio.describe(status)}"


def _build_gallery(studio: Studio, watched: Any, tab: Any) -> None:
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
        _act(studio.delete, name)
        return "", None, None, *refresh()

    for moment in (reload.click, tab.select):
        moment(refresh, outputs=[gallery, names])
    gallery.select(choose, names, [chosen, video, facts])
    reproduce.click(lambda name: _shown(lambda: studio.reproduce(name)), chosen, watched)
    watch.click(lambda name: name, chosen, watched)
    delete.click(remove, chosen, [chosen, video, facts, gallery, names])


def _possible(status: "VideoStatus | None") -> tuple[bool, ...]:
    """Whether a video can be cancelled, paused, taken up again, redone and made longer."""
    state = None if status is None else status.state
    is_under_way = state in ("queued", "running")
    return (
        is_under_way or state == "paused",
        is_under_way,
        state in ("paused", "cancelled", "failed"),
        state is not None and not is_under_way,
        state == "done",
    )


def _form(values: Sequence[Any]) -> Form:
    """The fields of the page, which come in the order of those of the form."""
    names = [field.name for field in dataclasses.fields(Form)]
    return Form(**dict(zip(names, values, strict=True)))


def _shown(make: Callable[[], "VideoStatus"]) -> str:
    """Id of a new video; what refuses it is told on the page."""
    try:
        return make().id
    except IsoframeError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _act(action: Callable[[str], object], name: str | None) -> None:
    """Do something with the video that was chosen."""
    if not name:
        raise gr.Error("choose a video first", print_exception=False)
    try:
        action(name)
    except IsoframeError as error:
        raise gr.Error(str(error), print_exception=False) from error


def _signature(value: Any) -> Any:
    """What tells two values of an output apart; pictures by their pixels."""
    return hash(value.tobytes()) if hasattr(value, "tobytes") else value
