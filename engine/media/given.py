"""The images that a request begins and ends with, at the size of the video."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..request.config import DIRECTIONS, Request
from .buckets import choose_bucket, scale_buckets
from .images import ReadImage, fit_to_bucket, load_image
from .source_video import SourceVideo, first_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

# Fields of a request that hold an image; a job keeps each as a file of this name.
IMAGE_FIELDS = ("image", "end_image")


def request_order(request: Request, default: Callable[[], str]) -> str:
    """The order of the sections; ``default`` is asked where the request leaves it open."""
    if request.order != "auto":
        return request.order
    if request.video is not None:
        return DIRECTIONS[request.direction]
    return "inverted" if request.has_end_image else default()


def read_images(request: Request) -> Request:
    """The request with its image files read: a bad one shows before a model is loaded, and none is decoded twice.

    Raises:
        InputError: an image cannot be used.
    """

    def read(image: object) -> object:
        return ReadImage(image, force=request.force) if isinstance(image, str | os.PathLike) else image

    return replace(
        request,
        image=read(request.image),
        end_image=read(request.end_image),
        guide_images=tuple(replace(guide, image=read(guide.image)) for guide in request.guide_images),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestImages:
    """What the model sees of a request's images.

    Attributes:
        size: (height, width) of the video in pixels.
        given_size: (height, width) of the start image as it was given; that of the video without one.
        start: cropped to ``size``; None makes the video from text alone.
        end: what follows the last frame, cropped; None leaves the end open.
        video: what is extended.
        guides: what takes the place of the start image later, in video order, cropped.
    """

    size: tuple[int, int]
    given_size: tuple[int, int]
    start: "Image | None"
    end: "Image | None"
    video: SourceVideo | None = None
    guides: "tuple[Image, ...]" = ()

    @classmethod
    def load(cls, request: Request, buckets: "Sequence[tuple[int, int]]") -> "RequestImages":
        """Read the images; of ``buckets`` the one nearest in shape is taken, or the squarest without an image.

        Raises:
            InputError: an image cannot be used.
        """
        video = None if request.video is None else SourceVideo(request.video, request.fps)
        source = request.image
        if source is None and video is not None:
            source = first_frame(video.path)
        start = None if source is None else load_image(source, force=request.force)
        given = None if start is None else (start.height, start.width)
        if video is not None:
            given = video.given_size
        size = request.size
        if size is None:
            size = choose_bucket(given or (1, 1), scale_buckets(buckets, request.base_resolution))
        fitted = None if start is None else fit_to_bucket(start, size)
        end = fitted if request.loop else None
        if request.end_image is not None:
            end = fit_to_bucket(load_image(request.end_image, force=request.force), size)
        guides = tuple(
            fit_to_bucket(load_image(guide.image, force=request.force), size)
            for guide in request.guide_images
        )
        return cls(size=size, given_size=given or size, start=fitted, end=end, video=video, guides=guides)

    def by_field(self) -> dict[str, "Image"]:
        """The images that are there, by the field of the request; guide images by :func:`guide_field`."""
        images = dict(zip(IMAGE_FIELDS, (self.start, self.end), strict=True))
        images |= {guide_field(i): guide for i, guide in enumerate(self.guides)}
        # A loop ends with the image that it starts with.
        is_loop = self.end is self.start
        return {
            name: image
            for name, image in images.items()
            if image is not None and not (is_loop and name == "end_image")
        }

    def hashes(self) -> dict[str, str | list[str] | None]:
        """SHA-256 of the pixels; the start image always, as None where there is none."""
        hashes: dict[str, str | list[str] | None] = {
            "image_sha256": None if self.start is None else _hash(self.start)
        }
        if self.end is not None:
            hashes["end_image_sha256"] = _hash(self.end)
        if self.video is not None:
            hashes["video_sha256"] = self.video.content_hash()
        if self.guides:
            hashes["guide_images_sha256"] = [_hash(guide) for guide in self.guides]
        return hashes


def guide_field(index: int | str) -> str:
    """What stands for a field of the request where guide image ``index`` is kept."""
    return f"guide_image_{index}"


def image_name(source: object) -> str | None:
    """The name of an image's file alone: a video is passed on, its maker's folders are not."""
    return os.path.basename(os.fspath(source)) if isinstance(source, str | os.PathLike) else None


def _hash(image: "Image") -> str:
    return hashlib.sha256(np.asarray(image).tobytes()).hexdigest()
