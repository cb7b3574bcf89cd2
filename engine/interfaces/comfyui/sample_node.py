"""The node that samples: latents in, latents out."""

from typing import Any

from ...engine import Engine
from ...events import Event, StepEvent
from ...model.conditioning import Conditioning
from ...request.config import ORDERS, SAMPLERS, STEP_CACHES, LoraStrength, SamplingConfig
from ...sampling.denoiser import EventHandler
from . import host
from .load_node import EngineHandle
from .node import ENGINE, LORAS, Input, Node, Output
from .tensors import from_conditioning, from_latent, latent_scale, to_latent


def sample(
    engine: EngineHandle,
    positive: Any,
    image_embeds: Any,
    start_latent: dict[str, Any],
    num_sections: int,
    steps: int,
    seed: int,
    order: str,
    guidance_scale: float,
    cfg: float,
    cfg_rescale: float,
    sampler: str,
    step_cache: str,
    step_cache_threshold: float,
    latent_window_size: int,
    negative: Any = None,
    loras: tuple[LoraStrength, ...] = (),
) -> tuple[dict[str, Any]]:
    """The latents of the whole video, the start latent first."""
    sampling = SamplingConfig(
        num_sections=num_sections, num_steps=steps, seed=seed, order=order, guidance_scale=guidance_scale,
        cfg_scale=cfg, cfg_rescale=cfg_rescale, sampler=sampler, step_cache=step_cache,
        step_cache_threshold=step_cache_threshold, latent_window_size=latent_window_size, loras=loras,
    )  # fmt: skip
    model, scale = engine.engine, latent_scale(engine.engine)
    conditioning = _condition(positive, negative, image_embeds, from_latent(start_latent, scale), cfg)
    host.take_memory(model.device)
    try:
        latents = model.sample_video(conditioning, sampling, on_event=_watch(model, sampling))
    finally:
        # After an interrupt too: ComfyUI goes on with other models.
        model.release()
        host.give_memory_back(model.device)
    return (to_latent(latents, scale, order=order, window=latent_window_size),)


def _condition(
    positive: Any, negative: Any, image_embeds: Any, start_latent: Any, cfg: float
) -> Conditioning:
    prompt = from_conditioning("positive", positive)
    other = from_conditioning("negative", negative) if cfg != 1.0 and negative is not None else None
    return Conditioning(
        text_embeds=prompt.text_embeds,
        text_mask=prompt.text_mask,
        pooled_embeds=prompt.pooled_embeds,
        image_embeds=image_embeds["last_hidden_state"],
        start_latent=start_latent,
        negative_text_embeds=None if other is None else other.text_embeds,
        negative_text_mask=None if other is None else other.text_mask,
        negative_pooled_embeds=None if other is None else other.pooled_embeds,
    )


def _watch(engine: Engine, sampling: SamplingConfig) -> EventHandler:
    """Shows every step, and stops after it if the user has cancelled."""
    move = host.make_progress(sampling.num_sections * sampling.num_steps)
    draw = host.make_previewer(engine.device)

    def on_event(event: Event) -> None:
        host.check_interrupt()
        if isinstance(event, StepEvent):
            move(event.section * event.num_steps + event.step + 1, preview=draw(event.x0))

    return on_event


def _number(name: str, default: float, minimum: float, maximum: float, tooltip: str = "") -> Input:
    is_integer = isinstance(default, int)
    return Input(
        name=name, kind="INT" if is_integer else "FLOAT", default=default, minimum=minimum, maximum=maximum,
        step=1 if is_integer else 0.01, tooltip=tooltip,
    )  # fmt: skip


def _choice(name: str, options: tuple[str, ...], tooltip: str = "") -> Input:
    return Input(name=name, kind="COMBO", options=lambda: list(options), default=options[0], tooltip=tooltip)


SAMPLE = Node(
    name="IsoframeSampler",
    title="Isoframe: Sampler",
    description="Samples a video section by section; every section costs the same.",
    inputs=(
        Input(name="engine", kind=ENGINE),
        Input(name="positive", kind="CONDITIONING"),
        Input(name="image_embeds", kind="CLIP_VISION_OUTPUT", tooltip="SigLIP's tokens of the start image."),
        Input(name="start_latent", kind="LATENT", tooltip="The start image, encoded by the model's VAE."),
        _number(
            "num_sections", 4, 1, 3000, "Each adds 4 frames for every frame of the window: 36 at window 9."
        ),
        _number("steps", 25, 1, 1000),
        _number("seed", 31337, 0, 2**63 - 1),
        _choice("order", ORDERS, "inverted for the I2V checkpoint, forward for F1"),
        _number("guidance_scale", 10.0, 0.0, 100.0, "Distilled guidance."),
        _number(
            "cfg",
            1.0,
            0.0,
            100.0,
            "True guidance; any but 1 needs a negative prompt and takes twice as long.",
        ),
        _number("cfg_rescale", 0.0, 0.0, 1.0),
        _choice("sampler", SAMPLERS),
        _choice("step_cache", STEP_CACHES, "none is exact, the others skip steps."),
        _number("step_cache_threshold", 0.15, 0.0, 10.0),
        _number("latent_window_size", 9, 1, 64),
        Input(name="negative", kind="CONDITIONING", is_optional=True),
        Input(name="loras", kind=LORAS, is_optional=True),
    ),
    outputs=(Output("samples", "LATENT"),),
    run=sample,
)
