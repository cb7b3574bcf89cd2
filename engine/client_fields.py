"""A request as the JSON that a server takes."""

import base64
import dataclasses
import io
import os
from pathlib import Path
from typing import Any

from .config import Request
from .errors import ConfigError

# Fields that a server takes in another form, or not at all.
_REFUSED = ("latent_paddings", "prompt_spans", "force")
_OTHERWISE = ("image", "size", "loras", *_REFUSED)
_DEFAULTS = Request(image="", prompt="")


def request_fields(request: Request) -> dict[str, Any]:
    """What differs from the defaults, and the image in base64.

    Raises:
        ConfigError: a server does not take a field that is set.
        OSError: the image cannot be read.
    """
    for name in _REFUSED:
        if getattr(request, name) != getattr(_DEFAULTS, name):
            raise ConfigError(f"{name} must be left as it is, a server does not take it")
    names = [field.name for field in dataclasses.fields(request) if field.name not in _OTHERWISE]
    values = {name: getattr(request, name) for name in names}
    fields = {name: value for name, value in values.items() if value != getattr(_DEFAULTS, name)}
    if request.size is not None:
        fields |= {"height": request.size[0], "width": request.size[1]}
    if request.loras:
        fields["loras"] = [
            {"name": os.fspath(lora.source), "strength": lora.strength, "sections": lora.sections}
            for lora in request.loras
        ]
    return {**fields, "prompt": request.prompt, "image": base64.b64encode(_file(request.image)).decode()}


def _file(image: object) -> bytes:
    """The bytes of an image's file."""
    if isinstance(image, str | os.PathLike):
        return Path(image).read_bytes()
    from .images import load_image

    content = io.BytesIO()
    load_image(image).save(content, format="PNG")
    return content.getvalue()
