"""Nodes that load: an engine with its budget, and LoRAs."""

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...engine import Engine
from ...errors import ConfigError
from ...families.registry import known_models
from ...request.config import ATTENTIONS, PRECISIONS, EngineConfig, LoraStrength
from ...request.sampling_config import parse_sections
from . import host
from .node import ENGINE, LORAS, Input, Node, Output

_AUTO = "auto"


class EngineHandle:
    """An engine that is closed when ComfyUI lets go of the node's result.

    Attributes:
        engine: open until then.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        weakref.finalize(self, engine.close)

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have the device meanwhile, and give it back: after an interrupt too, ComfyUI goes on with other models."""
        host.take_memory(self.engine.device)
        try:
            yield
        finally:
            self.engine.release()
            host.give_memory_back(self.engine.device)


def load_engine(
    model: str, precision: str, attention: str, vram: str, ram: str, device: str
) -> tuple[EngineHandle]:
    """An engine inside its budget; raises the errors of :meth:`Engine.load`."""
    config = EngineConfig(
        device=device,
        precision=None if precision == _AUTO else precision,
        attention=attention,
        vram=None if vram.strip() in ("", _AUTO) else vram,
        ram=None if ram.strip() in ("", _AUTO) else ram,
    )
    if device != "cpu" and torch.cuda.is_available():
        host.take_memory(torch.device("cuda"))
    source = model if model in known_models() else host.file_path("diffusion_models", model)
    engine = Engine.load(source, config=config)
    # ComfyUI's own models are not the engine's to limit.
    engine.lift_memory_limit()
    return (EngineHandle(engine),)


def load_lora(
    lora: str, strength: float, sections: str, loras: tuple[LoraStrength, ...] = ()
) -> tuple[tuple[LoraStrength, ...]]:
    """One more LoRA beside ``loras``; the sampler reads it."""
    try:
        active = parse_sections(sections) if sections.strip() else None
    except ValueError as error:
        raise ConfigError(f"sections must be empty or such as 1,3-5, got {sections!r}") from error
    return ((*loras, LoraStrength(source=host.file_path("loras", lora), strength=strength, sections=active)),)


def _budget(name: str, where: str) -> Input:
    return Input(
        name=name, kind="STRING", default=_AUTO,
        tooltip=f"Most memory {where}, such as 6GiB; auto takes from what is free when the node runs.",
    )  # fmt: skip


def _choice(name: str, options: tuple[str, ...], default: str) -> Input:
    return Input(name=name, kind="COMBO", options=lambda: list(options), default=default)


LOAD_ENGINE = Node(
    name="IsoframeLoadEngine",
    title="Isoframe: Load Engine",
    description="A FramePack transformer inside a budget of VRAM and RAM. Large models are converted once.",
    inputs=(
        Input(
            name="model", kind="COMBO", default="demo",
            options=lambda: [*known_models(), *host.file_names("diffusion_models")],
        ),
        _choice("precision", (_AUTO, *PRECISIONS), _AUTO),
        _choice("attention", ATTENTIONS, _AUTO),
        _budget("vram", "on the card"),
        _budget("ram", "that is added in RAM"),
        _choice("device", (_AUTO, "cpu", "cuda"), _AUTO),
    ),
    outputs=(Output("engine", ENGINE),),
    run=load_engine,
)  # fmt: skip

LOAD_LORA = Node(
    name="IsoframeLora",
    title="Isoframe: LoRA",
    description="A LoRA for the sampler, beside the weights: 8-bit and streamed ones too.",
    inputs=(
        Input(name="lora", kind="COMBO", options=lambda: host.file_names("loras")),
        Input(name="strength", kind="FLOAT", default=1.0, min=-10.0, max=10.0, step=0.05),
        Input(
            name="sections", kind="STRING", default="",
            tooltip="Where it is at work, such as 1,3-5, in the order in which sections are made; empty: everywhere.",
        ),
        Input(name="loras", kind=LORAS, optional=True, tooltip="LoRAs that are at work beside it."),
    ),
    outputs=(Output("loras", LORAS),),
    run=load_lora,
)  # fmt: skip
