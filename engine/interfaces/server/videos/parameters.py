"""What a client says about a video that it wants: names, types and bounds, and the engine's request."""

import hashlib
from collections.abc import Collection
from dataclasses import MISSING
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, create_model

from ....errors import ConfigError
from ....request.config import LoraStrength, Request
from ....request.fields import Offered, offered
from .errors import FieldError

if TYPE_CHECKING:
    from PIL.Image import Image

    from .service import VideoService
    from .status import VideoStatus

# Of the video: beyond it no decoder plays the file.
_MAX_SIDE = 4096
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
        """The LoRA as a request of the engine names it."""
        sections = None if self.sections is None else tuple(self.sections)
        return LoraStrength(source=self.name, strength=self.strength, sections=sections)


# What a request takes as it is; the image comes in several ways, and a LoRA must be loaded.
_AS_THEY_ARE = {
    name: known
    for name, known in offered(Request, "server").items()
    if name not in ("image", "size", "loras")
}


def _field(known: Offered) -> tuple[Any, Any]:
    """Type and bounds of a field, for pydantic."""
    about, is_text = known.setting, known.type is str and not known.setting.choices
    most = about.most if about.limit is None else about.limit
    return Literal[about.choices] if about.choices else known.type, Field(
        **({} if known.default is MISSING else {"default": known.default}),
        ge=about.least,
        gt=0 if about.is_positive else None,
        le=None if is_text else most,
        min_length=1 if is_text and known.default is MISSING else None,
        max_length=most if is_text else None,
        description=known.help,
    )


_fields: dict[str, Any] = {name: _field(known) for name, known in _AS_THEY_ARE.items()}
_Fields = create_model("_Fields", __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **_fields)


class VideoParameters(_Fields):  # type: ignore[misc, valid-type]  # made at import
    """One video to make from an image and a prompt."""

    model: str | None = Field(default=None, max_length=255, description="As in /v1/models.")
    height: _Side | None = Field(default=None, description="With width; the image's shape decides otherwise.")
    width: _Side | None = Field(default=None, description="With height.")
    loras: list[LoraParameters] = Field(default_factory=list, max_length=16)
    priority: int = Field(default=0, ge=-100, le=100, description="Higher ones run first.")
    previews: bool = Field(default=False, description="Draw a picture of the latents at every step.")

    def create(self, service: "VideoService", content: bytes, key: str | None = None) -> "VideoStatus":
        """Have ``service`` make the video of the image file ``content``; asking once more under ``key`` makes no other.

        Raises:
            IsoframeError: it is refused; a FieldError where a field is wrong.
        """
        from .pictures import read_picture

        if self.model not in (None, service.card.name):
            raise FieldError("model", f"model must be {service.card.name}, got {self.model!r}")
        request = self.to_request(read_picture(content, service.limits), service.card.loras)
        asked = self.model_dump_json(exclude={"image"}).encode()
        digest = None if key is None else hashlib.sha256(asked + b"\0" + content).hexdigest()
        return service.create(
            request, priority=self.priority, has_previews=self.previews, key=key, digest=digest
        )

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
        try:
            return Request(
                image=image,
                size=None if self.height is None or self.width is None else (self.height, self.width),
                loras=tuple(lora.to_strength() for lora in self.loras),
                **{name: getattr(self, name) for name in _AS_THEY_ARE},
            )
        except ConfigError as error:
            raise FieldError(field_of(str(error)), str(error)) from error


def field_of(message: str) -> str:
    """The field that a message of the engine speaks of; it names it first."""
    first = message.split(" ", 1)[0]
    if first in VideoParameters.model_fields:
        return first
    return next((field for start, field in _MESSAGE_STARTS.items() if message.startswith(start)), "image")
