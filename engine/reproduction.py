"""A video made again from its own metadata, and compared."""

import itertools
import math
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .checkpoints.lora_files import open_lora_file
from .errors import InputError
from .events import EventHandler
from .files import TEMPORARY_FOLDER
from .generation.numerics import changed_numerics, recorded_numerics
from .jobs.folder import JobFolder
from .jobs.metadata import FILE_FIELDS, package_versions
from .media.given import RequestImages
from .media.images import load_image
from .media.source_video import decode_frames
from .media.video import Video, read_video_info
from .output_paths import check_apart
from .request.codec import from_dict
from .request.config import LoraStrength, Request
from .request.guides import GuideImage
from .sampling.codebook import Codebook

if TYPE_CHECKING:
    from .engine import Engine

# What a file that was not made in one go says, and where to turn instead.
_OTHER_MAKING = {
    "post_process": "it was made from another video by a post-process; reproduce that video",
    "partial": "it is the finished part of a job that stopped; resume the job",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """A video that was made again.

    Attributes:
        video: the new one.
        num_frames: frames that were compared.
        num_different: frames that are not bit-identical.
        psnr: of all frames, in dB; infinite where they are identical.
        differences: what else was different, such as "torch 2.12.0 then, 2.13.0 now".
    """

    video: Video
    num_frames: int
    num_different: int
    psnr: float
    differences: tuple[str, ...]

    @property
    def is_identical(self) -> bool:
        return self.num_different == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a file says of its making.

    Attributes:
        source: the file.
        metadata: what it carries.
    """

    source: Path
    metadata: Mapping[str, Any]

    @classmethod
    def read(cls, source: str | os.PathLike[str]) -> "Recipe":
        """The recipe in an MP4, or in a PNG of one of its frames.

        Raises:
            InputError: there is none, or the file was not made in one go.
        """
        metadata: dict[str, Any] = read_video_info(source).metadata
        if not {"request", "sampling", "image_sha256", "model_hash", "size"} <= metadata.keys():
            raise InputError(
                f"{source} does not say how it was made; only files of isoframe can be reproduced"
            )
        if metadata["request"].get("target_index") is not None:
            raise InputError(
                f"{source} is a single frame; make it again with isoframe frame and compare the pictures"
            )
        for name, reason in _OTHER_MAKING.items():
            if name in metadata:
                raise InputError(f"{source} cannot be reproduced: {reason}")
        return cls(source=Path(source), metadata=metadata)

    def request(self, image: Path | None, folder: Path) -> Request:
        """The request, with its images, video and LoRAs checked by their content.

        Args:
            image: the start image; None looks for it by its name, as for the others.
            folder: where files are looked for before the working folder.

        Raises:
            InputError: a file is missing or another one than then, or another version wrote the metadata.
        """
        asked = dict(self.metadata["request"])
        unknown = sorted(asked.keys() - {field.name for field in fields(Request)})
        if unknown:
            raise InputError(
                f"{self.source} has options that this version does not know: {', '.join(unknown)}"
            )
        changes = {
            **{name: self._find(asked.get(name), folder) for name in FILE_FIELDS if name != "image"},
            "image": image or self._find(asked["image"], folder),
            "size": tuple(self.metadata["size"]),
            "base_resolution": None,
            "order": self.metadata["sampling"]["order"],
            "loras": tuple(self._find_lora(use, folder) for use in asked["loras"]),
            "guide_images": tuple(self._find_guide(guide, folder) for guide in asked.get("guide_images", ())),
            "force": True,
        }
        request = from_dict(Request, asked | changes)
        self._check_files(request)
        return request

    def differences(self, engine: "Engine") -> tuple[str, ...]:
        """What is not as it was then.

        Raises:
            InputError: the model or the frame filter is another one.
        """
        now = engine.identity()
        for name in ("model_hash", "frame_filter"):
            if self.metadata.get(name) != now.get(name):
                raise InputError(
                    f"{self.source} was made with {name} {self.metadata.get(name)}, this engine has {now.get(name)}"
                )
        then = {"device": self.metadata.get("device"), "precision": self.metadata.get("precision")}
        then |= self.metadata.get("versions", {})
        now |= package_versions()
        return tuple(
            f"{name} {value} then, {now.get(name)} now"
            for name, value in then.items()
            if value != now.get(name)
        )

    def _check_files(self, request: Request) -> None:
        if request.image is None and request.video is None and self.metadata["image_sha256"] is not None:
            raise InputError(f"the start image of {self.source} came without a name; name it with --image")
        if request.history_codebook is not None:
            found = Codebook.load(request.history_codebook).content_hash
            if found != self.metadata.get("codebook_sha256"):
                raise InputError(
                    f"codebook {request.history_codebook} is not the one that {self.source} was made with"
                )
        for name, value in RequestImages.load(request, ()).hashes().items():
            if value != self.metadata.get(name):
                field = name.removesuffix("_sha256")
                raise InputError(
                    f"{field} {_names(getattr(request, field))} is not the one that {self.source} was made with: their "
                    "hashes differ; name the right one with --image or --files"
                )

    def _find(self, name: str | None, folder: Path) -> Path | None:
        """A file that the metadata name."""
        if name is None:
            return None
        found = next((place / name for place in (folder, Path.cwd()) if (place / name).exists()), None)
        if found is None:
            raise InputError(
                f"{name}, which {self.source} was made with, is neither in {folder} nor here; name its folder with "
                "--files, a start image of another name with --image"
            )
        return found

    def _find_guide(self, guide: Mapping[str, Any], folder: Path) -> GuideImage:
        if guide["image"] is None:
            raise InputError(
                f"{self.source} was made with a guide image at {guide['time']:g} s that came without a file name; give "
                "guide images as files to have a video that can be reproduced"
            )
        return GuideImage(image=self._find(guide["image"], folder), time=guide["time"])

    def _find_lora(self, use: Mapping[str, Any], folder: Path) -> LoraStrength:
        path = self._find(use["source"], folder)
        assert path is not None, "a LoRA has a name"
        if open_lora_file(path).file.fingerprint().hex() != use["sha256"]:
            raise InputError(
                f"LoRA {path} is not the one that {self.source} was made with: their hashes differ"
            )
        sections = None if use["sections"] is None else tuple(use["sections"])
        return LoraStrength(source=path, strength=use["strength"], sections=sections)


def _names(images: object) -> str:
    """A file, or those of the guide images."""
    return ", ".join(str(guide.image) for guide in images) if isinstance(images, tuple) else str(images)


def reproduce(
    engine: "Engine",
    recipe: Recipe,
    request: Request,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    on_event: EventHandler | None = None,
) -> Reproduction:
    """Make the video of ``recipe`` again, as ``out``, and compare every frame.

    Args:
        engine: with the model that made it.
        recipe: what the file says.
        request: of it, see :meth:`Recipe.request`.
        out: the MP4.
        overwrite: replace an existing file.
        on_event: called with every event.
    """
    check_apart([Path(out)], [recipe.source])
    differences, numerics = recipe.differences(engine), recorded_numerics(recipe.metadata)
    is_frame = "frame" in recipe.metadata
    with tempfile.TemporaryDirectory(prefix=TEMPORARY_FOLDER) as folder:
        job, frames = Path(folder) / "job", Path(folder) / "frames"
        redos = recipe.metadata.get("redos", ())
        video = engine.render(
            request, out, overwrite=overwrite, on_event=on_event, job_dir=job if redos else None,
            png_dir=frames if is_frame else None, numerics=numerics,
        )  # fmt: skip
        for redo in redos:
            JobFolder.open(job).redo(redo["section"], seed=redo["seed"], prompt=redo["prompt"])
            video = engine.resume(job, out, overwrite=True, on_event=on_event)
        differences += (
            *changed_numerics(numerics, recorded_numerics(video.metadata)),
            *(
                f"in the middle of the job: {change}"
                for name in ("numerics_changes", "versions_changes")
                for change in recipe.metadata.get(name, ())
            ),
        )
        if is_frame:
            pairs = [(_png(recipe.source), _png(sorted(frames.iterdir())[recipe.metadata["frame"]]))]
            return _compare(pairs, video, differences)
        frames_of_both = itertools.zip_longest(decode_frames(recipe.source), decode_frames(video.path))
        return _compare(frames_of_both, video, differences)


def _compare(
    pairs: Iterable[tuple[NDArray[np.uint8] | None, NDArray[np.uint8] | None]],
    video: Video,
    differences: tuple[str, ...],
) -> Reproduction:
    """Compare ``pairs`` of frames, old and new; None stands beyond the end of the shorter video."""
    num_frames = num_different = 0
    squares = num_values = 0.0
    for one, other in pairs:
        num_frames += 1
        if one is None or other is None or one.shape != other.shape:
            num_different, squares = num_different + 1, math.inf
            continue
        difference = one.astype(np.int32) - other
        num_different += bool(difference.any())
        squares += float(np.square(difference).sum())
        num_values += difference.size
    return Reproduction(
        video=video,
        num_frames=num_frames,
        num_different=num_different,
        psnr=math.inf if squares == 0 else 10 * math.log10(255**2 * max(num_values, 1) / squares),
        differences=differences,
    )


def _png(path: Path) -> NDArray[np.uint8]:
    return np.asarray(load_image(path, force=True))
