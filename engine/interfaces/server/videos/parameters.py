"""What a client says about a video that it wants: names, types and bounds, and the engine's request."""

from collections.abc import Collection
from dataclasses import fields
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ....errors import ConfigError
from ....request.config import LoraStrength, Request
from .errors import FieldError

if TYPE_CHECKING:
    from PIL.Image import Image

_DEFAULTS = Request(image="", prompt="")
# Of the video: beyond it no decoder plays the file.
_MAX_SIDE = 4096
# Some hundred times what the text encoders read.
_MAX_CHARACTERS = 8192
_Side = Annotated[int, Field(ge=16, le=_MAX_SIDE, multiple_of=16)]
# How the messages of the engine begin, and the field that is meant.
_MESSAGE_STARTS = {
    "size": "height",
    "source of a LoRA": "loras",
    "strength of a LoRA": "loras",
    "sections of a LoRA": "loras",
    "a time in prompt": "prompt",
    "a prompt's time": "prompt",
    "no prompt": "prompt",
    "prompts": "prompt",
    "section must": "section",
    "redo needs": "seed",
}


class LoraParameters(BaseModel):
    """A LoRA that the server has loaded."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str = Field(max_length=255, description="As in /v1/models.")
    strength: float = Field(default=1.0, ge=-100, le=100)
    sections: list[Annotated[int, Field(ge=0, le=100_000)]] | None = Field(
        default=None, max_length=1000, description="In generation order, from 0; all if not given."
    )

    def to_strength(self) -> LoraStrength:
        """The same for the engine."""
        sections = None if self.sections is None else tuple(self.sections)
        return LoraStrength(source=self.name, strength=self.strength, sections=sections)


class VideoParameters(BaseModel):
    """One video to make from an image and a prompt."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    prompt: str = Field(
        min_length=1,
        max_length=_MAX_CHARACTERS,
        description='What happens in the video; or what happens when: "a girl [0s] sits [2.5s: 4s] waves".',
    )
    prompt_blend: float = Field(
        default=_DEFAULTS.prompt_blend, ge=0, le=3600, description="Seconds around a change of prompt."
    )
    negative_prompt: str = Field(
        default=_DEFAULTS.negative_prompt,
        max_length=_MAX_CHARACTERS,
        description="Used if cfg_scale is not 1.",
    )
    model: str | None = Field(default=None, max_length=255, description="As in /v1/models.")
    seconds: float = Field(default=_DEFAULTS.seconds, gt=0, description="Rounded to whole sections.")
    height: _Side | None = Field(default=None, description="With width; the image's shape decides otherwise.")
    width: _Side | None = Field(default=None, description="With height.")
    order: Literal["auto", "inverted", "forward"] = "auto"
    fps: int = Field(default=_DEFAULTS.fps, ge=1, le=120)
    crf: int = Field(default=_DEFAULTS.crf, ge=0, le=51)
    num_steps: int = Field(default=_DEFAULTS.num_steps, ge=1, le=10_000)
    guidance_scale: float = Field(default=_DEFAULTS.guidance_scale, ge=0, le=1000)
    cfg_scale: float = Field(default=_DEFAULTS.cfg_scale, ge=0, le=1000)
    cfg_rescale: float = Field(default=_DEFAULTS.cfg_rescale, ge=0, le=1)
    seed: int = Field(default=_DEFAULTS.seed, ge=0, lt=2**63)
    latent_window_size: int = Field(default=_DEFAULTS.latent_window_size, ge=1, le=36)
    sampler: Literal["unipc", "unipc-bh2", "euler"] = "unipc"
    step_cache: Literal["none", "teacache", "magcache"] = "none"
    step_cache_threshold: float = Field(default=_DEFAULTS.step_cache_threshold, ge=0, le=1000)
    step_cache_max_skips: int = Field(default=_DEFAULTS.step_cache_max_skips, ge=1, le=1000)
    step_cache_retention: float = Field(default=_DEFAULTS.step_cache_retention, ge=0, le=1)
    posterior: Literal["sample", "mode"] = "sample"
    loras: list[LoraParameters] = Field(default_factory=list, max_length=16)
    priority: int = Field(default=0, ge=-100, le=100, description="Higher ones run first.")
    previews: bool = Field(default=False, description="Draw a picture of the latents at every step.")

    def to_request(self, image: "Image", loras: Collection[str]) -> Request:
        """What the engine is asked for.

        Args:
            image: start image.
            loras: names of those that are loaded.

        Raises:
            FieldError: fields contradict each other, or a LoRA is not loaded.
        """
        if (self.height is None) != (self.width is None):
            raise FieldError("height", "height and width must come together")
        unknown = [lora.name for lora in self.loras if lora.name not in loras]
        if unknown:
            loaded = ", ".join(loras) or "none"
            raise FieldError(
                "loras", f"loras must be loaded by the server, which has {loaded}; got {unknown[0]!r}"
            )
        shared = set(VideoParameters.model_fields) & {field.name for field in fields(Request)} - {"loras"}
        try:
            return Request(
                image=image,
                size=None if self.height is None or self.width is None else (self.height, self.width),
                loras=tuple(lora.to_strength() for lora in self.loras),
                **{name: getattr(self, name) for name in shared},
            )
        except ConfigError as error:
            raise FieldError(field_of(str(error)), str(error)) from error


def field_of(message: str) -> str:
    """The field that a message of the engine speaks of; it names it first."""
    first = message.split(" ", 1)[0]
    if first in VideoParameters.model_fields:
        return first
    return next((field for start, field in _MESSAGE_STARTS.items() if message.startswith(start)), "image")
