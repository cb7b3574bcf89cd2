"""What a video file says about its making."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from ..checkpoints.lora import Lora
from ..media.given import IMAGE_FIELDS, RequestImages, image_name
from ..request.codec import to_dict
from ..request.config import LoraStrength, Request, SamplingConfig
from ..sampling.codebook import Codebook

# Fields of a request that name a file.
FILE_FIELDS = (*IMAGE_FIELDS, "video", "history_codebook")
_PACKAGES = ("isoframe", "torch", "diffusers", "transformers", "av")


def video_metadata(
    request: Request,
    sampling: SamplingConfig,
    images: RequestImages,
    *,
    loras: Sequence[Lora],
    model: str,
    identity: Mapping[str, object],
) -> dict[str, Any]:
    """JSON-ready description of a job.

    Args:
        request: what was asked for.
        sampling: what it resolved to.
        images: as the model sees them; their pixels enter as hashes.
        loras: those of ``sampling``, in its order.
        model: name of the model.
        identity: what else decides the bits, see :meth:`Engine.identity`; what is None is left out.
    """
    uses = [_describe_lora(use, lora) for use, lora in zip(sampling.loras, loras, strict=True)]
    # Names alone: a video is passed on, its maker's folders are not.
    asked = to_dict(request) | {name: image_name(getattr(request, name)) for name in FILE_FIELDS}
    asked["guide_images"] = [
        {"image": image_name(guide.image), "time": guide.time} for guide in request.guide_images
    ]
    return {
        "request": asked | {"loras": uses},
        "sampling": to_dict(sampling) | {"loras": uses, "history_codebook": asked["history_codebook"]},
        "seed": sampling.seed,
        **_timeline(request),
        **images.hashes(),
        **_codebook(sampling),
        "size": list(images.size),
        "model": model,
        **{name: value for name, value in identity.items() if value is not None},
        "versions": package_versions(),
    }


def _codebook(sampling: SamplingConfig) -> dict[str, Any]:
    if sampling.history_codebook is None:
        return {}
    return {"codebook_sha256": Codebook.load(sampling.history_codebook).content_hash}


def _timeline(request: Request) -> dict[str, Any]:
    """Which prompt the sections have, in video order, where there are several."""
    stretches = request.prompt_timeline().stretches
    return {} if len(stretches) == 1 else {"prompts": [to_dict(stretch) for stretch in stretches]}


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
