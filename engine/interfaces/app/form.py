"""What somebody filled in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ...errors import ConfigError
from ...request.config import LoraStrength, Request
from ...request.guides import GuideImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """What somebody filled in.

    Attributes:
        image: file of the start image; None if none was given.
        prompt: what happens; None where nobody has typed yet.
        seconds: wanted length.
        seed: of the noise.
        num_steps: of a section.
        step_cache: "none", "teacache" or "magcache".
        guidance_scale: distilled guidance.
        order: "auto", "inverted" or "forward".
        loras: names of LoRAs that are loaded.
        lora_strength: of all of them.
        end_image: file of what follows the last frame; None if none was given.
        end_image_strength: factor of its latent.
        is_text_alone: make the video without a start image, whether one was given or not.
        guide_images: files of images that take the place of the start image later on.
        guide_times: when, such as "2.4, 4.8", in the order of the files.
    """

    image: str | None
    prompt: str | None
    seconds: float | None
    seed: float | None
    num_steps: float | None
    step_cache: str
    guidance_scale: float | None
    order: str
    loras: Sequence[str] = ()
    lora_strength: float | None = 1.0
    end_image: str | None = None
    end_image_strength: float | None = 1.0
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
            seconds=request.seconds,
            seed=request.seed,
            num_steps=request.num_steps,
            step_cache=request.step_cache,
            guidance_scale=request.guidance_scale,
            order=request.order,
            loras=[str(lora.source) for lora in request.loras],
            lora_strength=strengths[0] if strengths else 1.0,
            end_image=_path(request.end_image),
            end_image_strength=request.end_image_strength,
            is_text_alone=request.image is None,
            guide_images=[str(guide.image) for guide in request.guide_images],
            guide_times=", ".join(f"{guide.time:g}" for guide in request.guide_images),
        )

    def name_files(self, message: str) -> str:
        """``message`` with the names of the given files in place of where the app keeps them."""
        for path in (self.image, self.end_image, *(self.guide_images or ())):
            message = message.replace(path, Path(path).name) if path else message
        return message

    def to_request(self) -> Request:
        """The same for the engine.

        Raises:
            ConfigError: something is missing or out of bounds; the message names it.
        """
        if self.image is None and not self.is_text_alone:
            raise ConfigError(
                "image must be given: drop a picture on the field, take an example, or tick text alone"
            )
        if not (self.prompt or "").strip():
            raise ConfigError("prompt must say what happens, as in: a red circle bounces")
        return Request(
            image=None if self.is_text_alone else self.image,
            prompt=self.prompt or "",
            seconds=number("seconds", self.seconds),
            seed=whole("seed", self.seed),
            num_steps=whole("num_steps", self.num_steps),
            step_cache=self.step_cache,
            guidance_scale=number("guidance_scale", self.guidance_scale),
            order=self.order,
            loras=tuple(
                LoraStrength(source=name, strength=number("lora_strength", self.lora_strength))
                for name in self.loras
            ),
            end_image=self.end_image,
            end_image_strength=number("end_image_strength", self.end_image_strength),
            guide_images=self._guides(),
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


def whole(name: str, value: float | None) -> int:
    """The same of a whole number."""
    return int(number(name, value))


def whole_text(name: str, text: str) -> int:
    """A whole number in a field of text."""
    try:
        return int(text)
    except ValueError as error:
        raise ConfigError(f"{name} must be a whole number, got {text!r}") from error
