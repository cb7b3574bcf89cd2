"""What a job is: request, model, plan and output, as JSON that a later process reads back."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..media.codecs import VideoFormat
from ..media.given import IMAGE_FIELDS, guide_field
from ..request.codec import from_dict, to_dict
from ..request.config import EngineConfig, Request, SamplingConfig
from ..request.guides import GuideImage
from ..request.sections import plan_sections
from .paths import image_path

# Of the whole folder: a change in any of its files counts.
VERSION = 2
# Fields of a request that its sampling, the metadata or the prompts of its sections tell; all others decide the video.
_TOLD_OTHERWISE = frozenset(
    (*IMAGE_FIELDS, "video", "guide_images", "loop", "size", "base_resolution", "seconds", "force", "prompt", "prompt_spans",
     *(field.name for field in dataclasses.fields(SamplingConfig)))
)  # fmt: skip
_DECISIVE_METADATA = (
    "image_sha256", "end_image_sha256", "guide_images_sha256", "video_sha256", "codebook_sha256", "size", "model_hash", "precision", "frame_filter",
)  # fmt: skip
_MAX_VALUE_LENGTH = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """What :meth:`Engine.load` was given.

    Attributes:
        model: "demo", a Hub id, a folder or a file.
        components: other sources of companions, by name.
        config: what the engine may use.
    """

    model: str
    components: Mapping[str, str] = field(default_factory=dict)
    config: EngineConfig = field(default_factory=EngineConfig)

    @classmethod
    def absolute(
        cls, model: str | os.PathLike[str], components: Mapping[str, str] | None, config: EngineConfig
    ) -> "ModelSource":
        """The source as another working folder can find it."""
        return cls(
            model=_absolute(model),
            components={name: _absolute(source) for name, source in (components or {}).items()},
            config=replace(config, cache_dir=config.cache_path().absolute()),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class JobRecord:
    """One job; never changes once it is written.

    Attributes:
        token: tells its temporary files from those of other jobs.
        source: the model.
        request: as asked for, but with the size and the order that were chosen, and its LoRAs by absolute paths; its
            image is not kept here.
        sampling: how the latents are sampled.
        metadata: of the video file.
        output: the MP4.
        num_frames: of the whole video.
        num_leading: frames before those of the sections, see :attr:`JobInputs.num_leading`.
        is_overwriting: whether ``output`` may exist.
        vae_tile: edge of the VAE's tiles in pixels, which another run keeps though it may have other memory free.
    """

    token: str
    source: ModelSource
    request: Request
    sampling: SamplingConfig
    metadata: Mapping[str, Any]
    output: Path
    num_frames: int
    num_leading: int
    is_overwriting: bool
    vae_tile: int | None = None

    def to_json(self) -> str:
        """The content of job.json."""
        values = to_dict(self)
        values |= values.pop("source") | {
            "version": VERSION,
            # Without its images a request may be none: a loop needs one.
            "request": {name: value for name, value in values["request"].items() if name not in IMAGE_FIELDS}
            | {"guide_images": [{"time": guide.time} for guide in self.request.guide_images]},
            "images": [name for name in IMAGE_FIELDS if self._has_image(name)],
            "sections": _plan(self.sampling),
            "output": str(self.output.absolute()),
        }
        return json.dumps(values, indent=2)

    @classmethod
    def from_json(cls, text: str, folder: Path, name: str) -> "JobRecord":
        """The record in ``text``; its request takes its images from ``folder``.

        Raises:
            InputError: another version wrote it, or it is damaged; with the ``name`` of the file.
        """
        try:
            values = json.loads(text)
            _check_version(values.pop("version", None), name)
            sections = values.pop("sections")
            record = cls._parse(values, folder)
            if sections != _plan(record.sampling):
                raise InputError(
                    f"{name} plans its sections in another way than this version; start the job again"
                )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{name} is damaged or of another version ({error}); start the job again"
            ) from error
        return record

    @classmethod
    def _parse(cls, values: dict[str, Any], folder: Path) -> "JobRecord":
        times = [guide["time"] for guide in values["request"].get("guide_images", ())]
        values["request"] |= _kept_images(folder, values.pop("images", IMAGE_FIELDS[:1]), times)
        values["source"] = {name: values.pop(name) for name in ("model", "components", "config")}
        return from_dict(cls, values)

    def kept_in(self, folder: Path) -> "JobRecord":
        """The record of this job with a request that names images in ``folder`` in place of pictures in memory."""
        names = [name for name in IMAGE_FIELDS if self._has_image(name)]
        images = _kept_images(folder, names, [guide.time for guide in self.request.guide_images])
        return replace(self, request=replace(self.request, **images))

    @property
    def video_format(self) -> VideoFormat:
        """Size, pace, codec and quality of the video file."""
        assert self.request.size is not None, "the record holds the size of the video"
        return VideoFormat.of(self.request, self.request.size)

    def _has_image(self, name: str) -> bool:
        """Whether the job keeps the image of a field; the end image of a loop is the start image."""
        if name == "image":
            return self.metadata["image_sha256"] is not None
        return self.request.end_image is not None

    def check_same(self, other: "JobRecord", folder: Path) -> None:
        """Raise :class:`InputError`, which names what differs, unless ``other`` is the same video."""
        mine, theirs = self._identity(), other._identity()
        names = [name for name in mine | theirs if mine.get(name) != theirs.get(name)]
        if names:
            pairs = ", ".join(
                f"{name} {_shorten(mine.get(name))} instead of {_shorten(theirs.get(name))}" for name in names
            )
            raise InputError(
                f"job folder {folder} holds another job, with {pairs}; choose another folder, or continue that "
                f"job with: isoframe resume {folder}"
            )

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the frames, as JSON values."""
        return {
            "prompt": _prompts(self.request),
            **{name: value for name, value in to_dict(self.request).items() if name not in _TOLD_OTHERWISE},
            **{name: self.metadata.get(name) for name in _DECISIVE_METADATA},
            **to_dict(self.sampling),
            # By their content.
            **{name: self.metadata["sampling"][name] for name in ("loras", "history_codebook")},
            "components": dict(self.source.components),
            "vae_tiles": self.source.config.vae_tiles,
        }


def _kept_images(folder: Path, names: Sequence[str], times: Sequence[float]) -> dict[str, Any]:
    """The fields of a request whose images, of the fields ``names`` and of guides at ``times``, are in ``folder``."""
    images = {name: image_path(folder, name) if name in names else None for name in IMAGE_FIELDS}
    guides = tuple(
        GuideImage(image=image_path(folder, guide_field(index)), time=time)
        for index, time in enumerate(times)
    )
    # A kept image was cropped to the video and may have an unusual shape.
    return {**images, "guide_images": guides, "force": True}


def _absolute(source: str | os.PathLike[str]) -> str:
    """Paths that exist become absolute; names of models stay."""
    return os.path.abspath(source) if os.path.exists(source) else os.fspath(source)


def _prompts(request: Request) -> object:
    """The prompt, or the prompts of all sections in video order."""
    stretches = request.prompt_timeline().stretches
    if len(stretches) == 1:
        return stretches[0].text
    return [stretch.text for stretch in stretches for _ in range(stretch.first_section, stretch.end_section)]


def _plan(sampling: SamplingConfig) -> list[list[int]]:
    """First latent frame and padding of every section, in generation order."""
    return [[section.first_latent_frame, section.latent_padding] for section in plan_sections(sampling)]


def _check_version(version: object, name: str) -> None:
    if version != VERSION:
        raise InputError(
            f"{name} must have version {VERSION}, got {version!r}; continue the job with the version of isoframe that "
            "started it"
        )


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[:_MAX_VALUE_LENGTH]}..."
