"""What a video file says about its making."""

import dataclasses
import hashlib
import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .config import LoraStrength, Request, SamplingConfig
from .lora import Lora

if TYPE_CHECKING:
    from PIL.Image import Image

_PACKAGES = ("isoframe", "torch", "diffusers", "transformers", "av")


def video_metadata(
    request: Request,
    sampling: SamplingConfig,
    image: "Image",
    *,
    loras: Sequence[Lora],
    model: str,
    model_hash: str,
    device: str,
    precision: str,
    frame_filter: str | None = None,
) -> dict[str, Any]:
    """JSON-ready description of a job.

    Args:
        request: what was asked for.
        sampling: what it resolved to.
        image: start image as the model sees it; its pixels enter as a hash.
        loras: those of ``sampling``, in its order.
        model: name of the model.
        model_hash: source hash of its transformer.
        device: "cpu", or the GPU's name.
        precision: of weights and activations.
        frame_filter: name of the function that the frames passed through.
    """
    asked = {f.name: getattr(request, f.name) for f in dataclasses.fields(request) if f.name != "image"}
    # The name alone: a video is passed on, its maker's folders are not.
    path = request.image if isinstance(request.image, str | os.PathLike) else None
    asked["image"] = None if path is None else os.path.basename(os.fspath(path))
    uses = [_describe_lora(use, lora) for use, lora in zip(sampling.loras, loras, strict=True)]
    asked["prompt_spans"] = [dataclasses.asdict(span) for span in request.prompt_spans]
    return {
        "request": asked | {"loras": uses},
        "sampling": dataclasses.asdict(sampling) | {"loras": uses},
        "seed": sampling.seed,
        **_timeline(request),
        "image_sha256": hashlib.sha256(np.asarray(image).tobytes()).hexdigest(),
        "size": [image.height, image.width],
        "model": model,
        "model_hash": model_hash,
        "device": device,
        "precision": precision,
        **({} if frame_filter is None else {"frame_filter": frame_filter}),
        "versions": package_versions(),
    }


def _timeline(request: Request) -> dict[str, Any]:
    """Which prompt the sections have, in video order, where there are several."""
    stretches = request.prompt_timeline().stretches
    return {} if len(stretches) == 1 else {"prompts": [dataclasses.asdict(stretch) for stretch in stretches]}


def _describe_lora(use: LoraStrength, lora: Lora) -> dict[str, Any]:
    return {
        "source": lora.path.name,
        "sha256": lora.content_hash,
        "strength": use.strength,
        "sections": None if use.sections is None else list(use.sections),
    }


def package_versions() -> dict[str, str]:
    """Versions of what decides the bits of a video."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    # The distribution's version does not tell a CUDA build from a CPU one.
    return found | {"torch": torch.__version__}
