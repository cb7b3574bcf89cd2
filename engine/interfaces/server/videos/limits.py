"""What one request may ask for."""

from dataclasses import dataclass

from ....errors import ConfigError
from ....request.config import Request
from .errors import FieldError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Bounds on a request; whatever is within them is for the engine's budget to accept or refuse.

    Attributes:
        upload_bytes: of an image file.
        image_pixels: of the image, checked before it is decoded.
        seconds: of the video.
        num_steps: denoising steps of a section.
        video_pixels: height times width of the video.
    """

    upload_bytes: int = 20 * 2**20
    image_pixels: int = 64 * 10**6
    seconds: float = 120.0
    num_steps: int = 100
    video_pixels: int = 1280 * 1280

    def __post_init__(self) -> None:
        for name in self.__slots__:
            # Also what is not a number, and would let everything through.
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")

    def check(self, request: Request) -> None:
        """Raise :class:`FieldError` where ``request`` asks for more."""
        height, width = request.size or (0, 0)
        values: tuple[tuple[str, float, float], ...] = (
            ("seconds", request.seconds, self.seconds),
            ("num_steps", request.num_steps, self.num_steps),
            ("height", height * width, self.video_pixels),
        )
        for field, value, most in values:
            if value > most:
                unit = " pixels (height times width)" if field == "height" else ""
                raise FieldError(field, f"{field} must be at most {most:g}{unit}, got {value:g}")
