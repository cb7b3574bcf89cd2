"""What a job is: request, model, plan and output, as JSON that a later process reads back."""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, first_names
from ..media.codecs import VideoFormat
from ..media.given import IMAGE_FIELDS, guide_field
from ..request.codec import from_dict, to_dict
from ..request.config import EngineConfig, Request, SamplingConfig
from ..request.guides import GuideImage
from ..request.sections import plan_sections
from .paths import JOBS, image_path
from .seals import seal, unseal

# Of the whole folder: a change in any of its files counts.
VERSION = 2
# Later ones of the same version may add keys, which are kept.
MINOR_VERSION = 1
# Fields of a request that its sampling, the metadata or the prompts of its sections tell; all others decide the video.
_TOLD_OTHERWISE = frozenset(
    (*IMAGE_FIELDS, "video", "guide_images", "loop", "size", "base_resolution", "seconds", "force", "prompt", "prompt_spans",
     *(field.name for field in dataclasses.fields(SamplingConfig)))
)  # fmt: skip
_DECISIVE_METADATA = (
    "image_sha256", "end_image_sha256", "guide_images_sha256", "video_sha256", "codebook_sha256", "size", "model_hash", "precision", "frame_filter",
)  # fmt: skip
_MAX_VALUE_LENGTH = 60
# Paths of a record besides its output, which a move of the whole folder takes along.
_PATHS = (("request", "video"), ("config", "cache_dir"))
# A day at 120 frames a second.
MAX_FRAMES = 24 * 3600 * 120


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
        later_keys: what a later minor version added, and its number.
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
    later_keys: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self, folder: Path) -> str:
        """The content of job.json in ``folder``, sealed."""
        values = to_dict(self)
        values |= values.pop("source")
        values |= {
            "version": VERSION,
            "minor_version": MINOR_VERSION,
            # Without its images a request may be none: a loop needs one.
            "request": {name: value for name, value in values["request"].items() if name not in IMAGE_FIELDS}
            | {"guide_images": [{"time": guide.time} for guide in self.request.guide_images]},
            "images": [name for name in IMAGE_FIELDS if self._has_image(name)],
            "sections": _plan(self.sampling),
            **values.pop("later_keys"),
        }
        values["output"] = _shortened(self.output, folder)
        for place, name in _PATHS:
            if values[place][name] is not None:
                values[place][name] = _shortened(Path(values[place][name]), folder)
        return seal(values)

    @classmethod
    def from_json(cls, text: str, folder: Path, name: str, *, accepts_changes: bool = False) -> "JobRecord":
        """The record in ``text``; its request takes its images from ``folder``.

        Raises:
            InputError: another version wrote it, it was changed, or it is damaged; with the ``name`` of the file.
        """
        try:
            values, changed = unseal(text)
            minor = _check_version(values, name)
            if changed and not accepts_changes:
                raise InputError(
                    f"{name} was changed since it was written: {first_names(changed)}; undo that, start the job again, "
                    "or have it made so with: isoframe resume --accept-changes"
                )
            sections = values.pop("sections")
            record = cls._parse(values, folder, minor=minor)
            if sections != _plan(record.sampling):
                raise InputError(
                    f"{name} plans its sections in another way than this version; start the job again"
                )
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            raise InputError(
                f"{name} is damaged or of another version ({error}); start the job again"
            ) from error
        return record._with_changes(changed) if changed else record

    @classmethod
    def _parse(cls, values: dict[str, Any], folder: Path, *, minor: int) -> "JobRecord":
        times = [guide["time"] for guide in values["request"].get("guide_images", ())]
        values["request"] |= _kept_images(folder, values.pop("images", IMAGE_FIELDS[:1]), times)
        values["source"] = {name: values.pop(name) for name in ("model", "components", "config")}
        if minor > MINOR_VERSION:
            known = {entry.name for entry in dataclasses.fields(cls)}
            later = {name: values.pop(name) for name in values.keys() - known}
            values["later_keys"] = {"minor_version": minor, **later}
        for place, name in _PATHS:
            holder = values["source"][place] if place == "config" else values[place]
            if holder.get(name) is not None:
                holder[name] = os.path.normpath(folder.absolute() / holder[name])
        values["output"] = os.path.normpath(folder.absolute() / values["output"])
        record = from_dict(cls, values)
        record._check()
        return record

    def _check(self) -> None:
        """Raise ValueError for what no job writes: files are removed by the token, and the output is replaced."""
        if re.fullmatch(r"[0-9a-f]{1,64}", self.token) is None:
            raise ValueError(f"token must be hexadecimal digits, got {self.token[:20]!r}")
        if self.output.suffix.lower() != ".mp4":
            raise ValueError(f"output must end in .mp4, got {self.output}")
        if self.request.size is None or not 0 < self.num_frames <= MAX_FRAMES:
            raise ValueError(
                f"request must have a size and num_frames be from 1 to {MAX_FRAMES}, got {self.request.size} and {self.num_frames}"
            )
        if not isinstance(self.metadata["sampling"], Mapping) or "image_sha256" not in self.metadata:
            raise ValueError("metadata must hold sampling and image_sha256")

    def _with_changes(self, names: Sequence[str]) -> "JobRecord":
        """The record whose metadata tell that it was changed, and of what it says now."""
        told = {
            place: {**values, **{name: value for name, value in now.items() if f"{place}.{name}" in names}}
            for place, now in (("request", to_dict(self.request)), ("sampling", to_dict(self.sampling)))
            if isinstance(values := self.metadata.get(place), Mapping)
        }
        return replace(self, metadata={**self.metadata, **told, "accepted_changes": list(names)})

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


def _shortened(path: Path, folder: Path) -> str:
    """``path`` as job.json in ``folder`` has it.

    Jobs of a cache or of a service lie in its folder "jobs": what is in there too is found from the job's folder, so that
    the whole can be moved.
    """
    path, folder = path.absolute(), folder.absolute()
    if folder.parent.name == JOBS and path.is_relative_to(folder.parents[1]):
        return os.path.relpath(path, folder)
    return str(path)


def _check_version(values: dict[str, Any], name: str) -> int:
    """The minor version; those numbers are taken out of ``values``."""
    version, minor = values.pop("version", None), values.pop("minor_version", 0)
    if version != VERSION or type(minor) is not int:
        raise InputError(
            f"{name} must have version {VERSION}, got {version!r}; continue the job with the version of isoframe that "
            "started it"
        )
    return minor


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[:_MAX_VALUE_LENGTH]}..."
