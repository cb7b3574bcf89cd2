"""Images that come as bytes from somebody else."""

import base64
import binascii
import re
from typing import TYPE_CHECKING

from ....errors import InputError
from ....media.images import load_image
from .errors import FieldError
from .limits import Limits

if TYPE_CHECKING:
    from PIL.Image import Image

# Decoders of rare formats are where the holes are.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")


def read_picture(content: bytes, limits: Limits) -> "Image":
    """The image in a file's ``content`` as upright 8-bit RGB; of an animation the first frame.

    Raises:
        FieldError: it is empty, too large, damaged or in another format; names the field "image".
    """
    if len(content) > limits.upload_bytes:
        raise FieldError(
            "image", f"image must have at most {limits.upload_bytes} bytes, got {len(content)}; scale it down"
        )
    try:
        return load_image(content, formats=FORMATS, max_pixels=limits.image_pixels)
    except InputError as error:
        raise FieldError("image", str(error)) from error


def decode_base64(text: str) -> bytes:
    """The bytes of a base64 text or of a data URL.

    Raises:
        FieldError: it is neither; addresses are not fetched. Names the field "image".
    """
    start = _DATA_URL.match(text[:64])
    try:
        return base64.b64decode(text[start.end() :] if start else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FieldError(
            "image",
            f"image must be the file in base64, or a data URL; paths and addresses are not read ({error})",
        ) from error
