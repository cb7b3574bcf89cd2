"""A request as the JSON that a server takes."""

import base64
import dataclasses
import io
import os
from pathlib import Path
from typing import Any

from .config import Request
from .errors import ConfigError

# Fields that a server takes as they are.
_SAME = (
    "prompt",
    "negative_prompt",
    "seconds",
    "order",
    "fps",
    "crf",
    "num_steps",
    "guidance_scale",
    "cfg_scale",
    "cfg_rescale",
    "seed",
    "latent_window_size",
    "sampler",
    "step_cache",
    "step_cache_threshold",
    "step_cache_max_skips",
    "step_cache_retention",
    "posterior",
    "prompt_blend",
)
# Those that it takes in another form; all others it does not take.
_OTHERWISE = ("image", "size", "loras")
_DEFAULTS = Request(image="", prompt="")


def request_fields(request: Request) -> dict[str, Any]:
    """What differs from the defaults, and the image in base64.

    Raises:
        ConfigError: there is no image, or a server does not take a field that is set.
        OSError: the image cannot be read.
    """
    if request.image is None:
        raise ConfigError("image must be given, a server makes no video without one; got None")
    for field in dataclasses.fields(request):
        if field.name not in (*_SAME, *_OTHERWISE) and _is_set(request, field.name):
            raise ConfigError(f"{field.name} must be left as it is, a server does not take it")
    fields = {name: getattr(request, name) for name in _SAME if _is_set(request, name)}
    if request.size is not None:
        fields |= {"height": request.size[0], "width": request.size[1]}
    if request.loras:
        fields["loras"] = [
            {"name": os.fspath(lora.source), "strength": lora.strength, "sections": lora.sections}
            for lora in request.loras
        ]
    return {**fields, "prompt": request.prompt, "image": base64.b64encode(_file(request.image)).decode()}


def _is_set(request: Request, name: str) -> bool:
    value, default = getattr(request, name), getattr(_DEFAULTS, name)
    # Arrays are not compared with None: they answer for every element.
    return value is not None if default is None else bool(value != default)


def _file(image: object) -> bytes:
    """The bytes of an image's file."""
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    from .images import load_image

    content = io.BytesIO()
    load_image(image).save(content, format="PNG")
    return content.getvalue()
