"""Images: any file, PIL image or array to 8-bit RGB, then to a bucket, then to a tensor."""

import io
import os
import struct
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


MAX_PIXELS = 64 * 10**6
MIN_SIDE = 16
_FILE = "the file"
# PIL knows more; among those is EPS, for which it calls another program.
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")
MAX_ASPECT = 4

# What PIL's decoders raise on damaged files, UnidentifiedImageError (an OSError) included.
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, LookupError, MemoryError)


class ReadImage:
    """An image file that is read already: a path, with the pixels for who loads it next.

    Only the first who asks gets them; for the next one the file is read again. So nobody holds an image that is larger
    than the video made from it.
    """

    def __init__(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Read ``path``; arguments and errors are those of :func:`load_image`."""
        self._path = Path(path)
        self._image: Image | None = load_image(self._path, force=force)

    def __fspath__(self) -> str:
        return str(self._path)

    __str__ = __fspath__

    def take(self) -> "Image | None":
        """The pixels, unless they were taken before."""
        image, self._image = self._image, None
        return image


def load_image(
    source: object,
    *,
    force: bool = False,
    formats: tuple[str, ...] = FORMATS,
    max_pixels: int = MAX_PIXELS,
) -> "Image":
    """Read ``source`` as an upright 8-bit RGB image.

    The EXIF orientation is applied. Transparent parts show white, as on a page: logos and cut-outs are drawn for
    it. 16-bit values are scaled to 8 bit. Of an animation the first frame is taken. CMYK goes through the embedded
    colour profile if there is one.

    Args:
        source: path, content of a file, PIL image, or array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8 or
            uint16.
        force: accept sides under 16 px and shapes beyond 4:1.
        formats: that a file may have, as PIL names them.
        max_pixels: more are refused before they are decoded.

    Raises:
        InputError: the file is missing, damaged or no image, or the size is refused.
    """
    from PIL import Image

    if isinstance(source, ReadImage) and (read := source.take()) is not None:
        return read
    if isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if path.is_dir():
            raise InputError(f"image must be a file, {path} is a folder")
        if not path.exists():
            raise InputError(f"image {path} does not exist")
        image, name = _open(path, str(path), formats, max_pixels), str(path)
    elif isinstance(source, bytes):
        image, name = _open(io.BytesIO(source), _FILE, formats, max_pixels), _FILE
    elif isinstance(source, np.ndarray):
        image, name = _from_array(source), "the array"
    elif isinstance(source, Image.Image):
        image, name = source, "the PIL image"
    else:
        raise InputError(f"image must be a path, a PIL image or a numpy array, got {type(source).__name__}")
    # The file is closed, a picture of the caller's is not.
    with image if isinstance(source, str | os.PathLike | bytes) else nullcontext():
        _check_size(image.size, name, force, max_pixels)
        return _decode(image, name)


def fit_to_bucket(image: "Image", bucket: tuple[int, int]) -> "Image":
    """Scale ``image`` (LANCZOS) until it covers ``bucket`` (height, width) and crop the centre; exact stays as is."""
    from PIL import Image

    height, width = bucket
    if image.size == (width, height):
        return image
    image = _trim(image, bucket)
    scale = max(width / image.width, height / image.height)
    scaled_width, scaled_height = round(image.width * scale), round(image.height * scale)
    left, top = (scaled_width - width) / 2, (scaled_height - height) / 2
    scaled = image.resize((scaled_width, scaled_height), Image.Resampling.LANCZOS)
    return scaled.crop((left, top, left + width, top + height))


def image_to_tensor(image: "Image") -> Tensor:
    """RGB image to fp32 [1, 3, 1, H, W] in [-1, 1]."""
    pixels = torch.from_numpy(np.array(image, dtype=np.uint8)).float()
    return (pixels / 127.5 - 1).permute(2, 0, 1)[None, :, None].contiguous()


def _open(file: Path | io.BytesIO, name: str, formats: tuple[str, ...], max_pixels: int) -> "Image":
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            # Our own limit is lower than the one PIL warns at.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            Image.init()
            return Image.open(file, formats=[name for name in formats if name in Image.OPEN])
    except PermissionError as error:
        raise InputError(f"image {name} cannot be read: {error.strerror}; check its permissions") from error
    except Image.DecompressionBombError as error:
        raise InputError(f"image {name} must have at most {_megapixels(max_pixels)}: {error}") from error
    except _DECODING_ERRORS as error:
        reason = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
        known = ", ".join(formats)
        if name == _FILE:
            raise InputError(f"image must be a whole file in one of {known}{reason}") from error
        raise InputError(f"image {name} is damaged or in none of the formats {known}{reason}") from error


def _megapixels(pixels: float) -> str:
    return f"{pixels / 10**6:.3g} megapixels"


def _check_size(size: tuple[int, int], name: str, force: bool, max_pixels: int) -> None:
    width, height = size
    dimensions = f"{height}x{width} (height x width)"
    if width * height > max_pixels:
        raise InputError(
            f"image must have at most {_megapixels(max_pixels)}, {name} is {dimensions}, "
            f"{_megapixels(width * height)}; scale it down first"
        )
    if min(size) < 1:
        raise InputError(f"image must have pixels, {name} is {dimensions}")
    if force:
        return
    if min(size) < MIN_SIDE:
        raise InputError(
            f"image must be at least {MIN_SIDE} px on each side, {name} is {dimensions}; "
            "use a larger image or --force-size (force=True)"
        )
    if max(size) > MAX_ASPECT * min(size):
        raise InputError(
            f"image must be at most {MAX_ASPECT}:1, {name} is {dimensions}; crop it or use --force-size "
            "(force=True)"
        )


def _from_array(array: NDArray[np.generic]) -> "Image":
    from PIL import Image

    if array.dtype not in (np.uint8, np.uint16):
        raise InputError(f"image array must be uint8 or uint16, got {array.dtype}; scale it to 0..255 first")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (3, 4)):
        raise InputError(f"image array must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {array.shape}")
    if 0 in array.shape:
        raise InputError(f"image array must have pixels, got {array.shape}")
    return Image.fromarray(_to_8_bit(array) if array.dtype == np.uint16 else array)


def _decode(image: "Image", name: str) -> "Image":
    from PIL import ImageOps

    try:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))
    except _DECODING_ERRORS as error:
        raise InputError(f"image {name} is damaged or truncated: {error}") from error


def _to_rgb(image: "Image") -> "Image":
    from PIL import Image

    if image.mode.startswith("I"):
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined white; save it with 8 or 16 bits")
    if image.mode == "CMYK":
        return _cmyk_to_rgb(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        page = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(page, image).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _to_8_bit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """16-bit values to the nearest of 256 levels; 65535 becomes 255."""
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise ValueError("pixels of more than 16 bits; save it with 8 or 16 bits")
    return ((wide + 128) // 257).astype(np.uint8)


def _cmyk_to_rgb(image: "Image") -> "Image":
    """Convert CMYK by the embedded profile, which says what the inks look like; without one, as ideal inks."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile:
        return image.convert("RGB")
    try:
        inks = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(image, inks, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError) as error:
        raise ValueError(f"its colour profile cannot be used ({error}); save it as RGB") from error
    assert converted is not None
    return converted


def _trim(image: "Image", bucket: tuple[int, int]) -> "Image":
    """Cut from extreme shapes what scaling would only enlarge to throw away."""
    height, width = bucket
    longest = MAX_ASPECT * max(width / height, height / width)
    trimmed_width = min(image.width, max(round(image.height * longest), 1))
    trimmed_height = min(image.height, max(round(image.width * longest), 1))
    if (trimmed_width, trimmed_height) == image.size:
        return image
    left, top = (image.width - trimmed_width) // 2, (image.height - trimmed_height) // 2
    return image.crop((left, top, left + trimmed_width, top + trimmed_height))
