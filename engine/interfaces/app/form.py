"""What somebody filled in on the page, and the request that it comes to."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from ...errors import ConfigError
from ...request.config import LoraStrength, Request
from ...request.fields import Offered, offered
from ...request.guides import GuideImage

# The plain fields of a request that the page offers, each with one value; the others have fields of their own in a form.
PLAIN = {
    name: known
    for name, known in offered(Request, "app").items()
    if name not in ("image", "prompt", "loras", "end_image", "guide_images")
}
_Plain = dataclasses.make_dataclass(
    "_Plain", [(name, Any, known.default) for name, known in PLAIN.items()], frozen=True, kw_only=True
)


@dataclass(frozen=True, kw_only=True)
class Form(_Plain):  # type: ignore[valid-type, misc]  # made at import
    """What somebody filled in; the fields that are not here are those of :data:`PLAIN`, None where emptied.

    Attributes:
        image: file of the start image; None if none was given.
        prompt: what happens; None where nobody has typed yet.
        loras: names of LoRAs that are loaded.
        lora_strength: of all of them.
        end_image: file of what follows the last frame; None if none was given.
        is_text_alone: make the video without a start image, whether one was given or not.
        guide_images: files of images that take the place of the start image later on.
        guide_times: when, such as "2.4, 4.8", in the order of the files.
    """

    image: str | None
    prompt: str | None
    loras: Sequence[str] = ()
    lora_strength: float | None = 1.0
    end_image: str | None = None
    is_text_alone: bool = False
    guide_images: Sequence[str] | None = None
    guide_times: str | None = None

    @classmethod
    def of_request(cls, request: Request) -> Self:
        """The form that asks for the same, as far as there are fields for it."""
        strengths = [lora.strength for lora in request.loras]
        return cls(
            image=_path(request.image),
            prompt=request.prompt,
            loras=[str(lora.source) for lora in request.loras],
            lora_strength=strengths[0] if strengths else 1.0,
            end_image=_path(request.end_image),
            is_text_alone=request.image is None,
            guide_images=[str(guide.image) for guide in request.guide_images],
            guide_times=", ".join(f"{guide.time:g}" for guide in request.guide_images),
            **{name: getattr(request, name) for name in PLAIN},
        )

    def name_files(self, message: str) -> str:
        """``message`` with the names of the given files in place of where the app keeps them."""
        for path in (self.image, self.end_image, *(self.guide_images or ())):
            message = message.replace(path, Path(path).name) if path else message
        return message

    def to_request(self) -> Request:
        """The request that the form asks for.

        Raises:
            ConfigError: something is missing or out of bounds; the message names it.
        """
        if self.image is None and not self.is_text_alone:
            raise ConfigError(
                "image must be given: drop a picture on the field, take an example, or tick text alone"
            )
        if not (self.prompt or "").strip():
            raise ConfigError("prompt must say what happens, as in: a red circle bounces")
        strength = number("lora_strength", self.lora_strength)
        return Request(
            image=None if self.is_text_alone else self.image,
            prompt=self.prompt or "",
            loras=tuple(LoraStrength(source=name, strength=strength) for name in self.loras),
            end_image=self.end_image,
            guide_images=self._guides(),
            **{name: _filled(known, getattr(self, name)) for name, known in PLAIN.items()},
        )

    def _guides(self) -> tuple[GuideImage, ...]:
        images = self.guide_images or ()
        try:
            times = [float(time.strip(" s")) for time in (self.guide_times or "").split(",") if time.strip()]
        except ValueError as error:
            raise ConfigError(
                f"guide_times must be seconds such as 2.4, 4.8, got {self.guide_times!r}"
            ) from error
        if len(times) != len(images):
            raise ConfigError(
                f"guide_times must have a time for each of the {len(images)} guide images, such as 2.4, 4.8, got "
                f"{self.guide_times!r}"
            )
        guides = [GuideImage(image=image, time=time) for image, time in zip(images, times, strict=True)]
        return tuple(sorted(guides, key=lambda guide: guide.time))


def _path(image: object) -> str | None:
    return None if image is None else str(image)


def number(name: str, value: float | None) -> float:
    """A field that somebody may have emptied."""
    if value is None:
        raise ConfigError(f"{name} must be a number, the field is empty")
    return value


def _filled(known: Offered, value: Any) -> Any:
    """The value of a plain field, which the page gives as a float or as nothing."""
    if known.type is float:
        return number(known.field, value)
    if known.type is int or (known.type == int | None and value is not None):
        return whole(known.field, value)
    return value


def whole(name: str, value: float | None) -> int:
    """The whole number in a field that somebody may have emptied."""
    return int(number(name, value))


def whole_text(name: str, text: str) -> int:
    """A whole number in a field of text."""
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{name} must be a whole number, got {text!r}") from error
