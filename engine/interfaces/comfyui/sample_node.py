"""The node that samples: latents in, latents out."""

from typing import Any

from ...engine import Engine
from ...events import Event, EventHandler, StepEvent
from ...model.conditioning import Conditioning
from ...request.config import LoraStrength, SamplingConfig
from ...request.fields import Offered, offered
from . import host
from .load_node import EngineHandle
from .node import ENGINE, LORAS, Input, Node, Output
from .tensors import from_conditioning, from_latent, latent_scale, to_latent

# Saved workflows keep the values of widgets by their places: these stay where they are, newer ones come after them.
_FIRST = (
    "num_steps", "seed", "order", "guidance_scale", "cfg_scale", "cfg_rescale", "sampler", "step_cache",
    "step_cache_threshold", "latent_window_size",
)  # fmt: skip
_OFFERED = offered(SamplingConfig, "comfyui")
_WIDGETS = [_OFFERED[name] for name in dict.fromkeys((*_FIRST, *_OFFERED)) if name != "loras"]


def sample(
    engine: EngineHandle,
    positive: Any,
    image_embeds: Any,
    start_latent: dict[str, Any],
    num_sections: int,
    negative: Any = None,
    loras: tuple[LoraStrength, ...] = (),
    **widgets: Any,
) -> tuple[dict[str, Any]]:
    """The latents of the whole video, the start latent first; ``widgets`` are fields of its sampling."""
    asked = {known.field: widgets[known.name] for known in _WIDGETS}
    sampling = SamplingConfig(num_sections=num_sections, loras=loras, **asked)
    model, scale = engine.engine, latent_scale(engine.engine)
    is_guided = sampling.cfg_scale != 1.0 and negative is not None
    conditioning = Conditioning.of(
        from_conditioning("positive", positive),
        from_conditioning("negative", negative) if is_guided else None,
        image_embeds=image_embeds["last_hidden_state"],
        start_latent=from_latent(start_latent, scale),
    )
    with engine.at_work():
        latents = model.sample_video(conditioning, sampling, on_event=_watch(model, sampling))
    return (to_latent(latents, scale, order=sampling.order, window=sampling.latent_window_size),)


def _watch(engine: Engine, sampling: SamplingConfig) -> EventHandler:
    """Shows every step, and stops after it if the user has cancelled."""
    move = host.make_progress(sampling.num_sections * sampling.num_steps)
    draw = host.make_previewer(engine.device)

    def on_event(event: Event) -> None:
        host.check_interrupt()
        if isinstance(event, StepEvent):
            move(event.section * event.num_steps + event.step + 1, preview=draw(event.x0))

    return on_event


def _widget(known: Offered) -> Input:
    about, kind = known.setting, {int: "INT", float: "FLOAT"}.get(known.type, "COMBO")
    return Input(
        name=known.name,
        kind=kind,
        default=known.default,
        options=(lambda: list(about.choices)) if about.choices else None,
        min=about.least,
        max=about.most if about.limit is None else about.limit,
        step={"INT": 1, "FLOAT": 0.01}.get(kind),
        tooltip=known.help,
    )


SAMPLE = Node(
    name="IsoframeSampler",
    title="Isoframe: Sampler",
    description="Samples a video section by section; every section costs the same.",
    inputs=(
        Input(name="engine", kind=ENGINE),
        Input(name="positive", kind="CONDITIONING"),
        Input(name="image_embeds", kind="CLIP_VISION_OUTPUT", tooltip="SigLIP's tokens of the start image."),
        Input(name="start_latent", kind="LATENT", tooltip="The start image, encoded by the model's VAE."),
        Input(
            name="num_sections", kind="INT", default=4, min=1, max=3000, step=1,
            tooltip="Each adds 4 frames for every frame of the window: 36 at window 9.",
        ),
        *map(_widget, _WIDGETS),
        Input(name="negative", kind="CONDITIONING", optional=True),
        Input(name="loras", kind=LORAS, optional=True),
    ),
    outputs=(Output("samples", "LATENT"),),
    run=sample,
)  # fmt: skip
