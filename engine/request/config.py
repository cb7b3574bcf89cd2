"""Configuration: what the engine may use, and what one job asks for."""

import os
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .fields import (
    DOORS,
    JOB,
    MACHINE,
    OUTPUT,
    check_at_least,
    check_choice,
    check_settings,
    described,
    is_finite,
    setting,
    settle_values,
)
from .guides import GuideImage, plan_guides
from .notation import NOTATION_HELP, check_notation, check_text, foreign_notation
from .prompts import PromptSpan, PromptTimeline, plan_prompts, without_times
from .sampling_config import (
    ALL_ORDERS,
    END_IMAGE_USES,
    ORDERS,
    SAMPLERS,
    STEP_CACHES,
    UNTRAINED_ORDERS,
    LoraStrength,
    SamplingConfig,
    SharedFields,
)
from .section_times import SectionTimes
from .sizes import Size, parse_size
from .unused import unused_options

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = [
    "ALL_ORDERS",
    "ATTENTIONS",
    "CODECS",
    "COMPUTE_DTYPES",
    "DIRECTIONS",
    "END_IMAGE_USES",
    "MAX_CRF",
    "ORDERS",
    "POSTERIORS",
    "PRECISIONS",
    "PRESETS",
    "SAMPLERS",
    "STEP_CACHES",
    "TUNED_SETTINGS",
    "UNTRAINED_ORDERS",
    "EngineConfig",
    "LoraStrength",
    "Request",
    "SamplingConfig",
    "check_choice",
]

# Options by the trade of time against fidelity; the steps that a cache skips are approximate.
PRESETS: dict[str, dict[str, Any]] = {
    "draft": {"num_steps": 15, "step_cache": "magcache"},
    "balanced": {"num_steps": 25, "step_cache": "magcache"},
    "final": {"num_steps": 25, "step_cache": "none"},
}
# The names of isoframe.quant, repeated so that reading a configuration does not import torch.
PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int8-weight", "fp8", "nf4")
COMPUTE_DTYPES = ("auto", "fp32", "bf16", "fp16")
ATTENTIONS = ("auto", "sdpa", "flash-attn", "flash-attn-3", "xformers", "sageattention", "int8", "int8-fp8")
POSTERIORS = ("sample", "mode")
# Where a video is extended to, and the order of sections that goes there.
DIRECTIONS = {"forward": "forward", "backward": "inverted"}
# Codecs of video files, and the worst quality of each.
CODECS = ("h264", "hevc", "av1")
MAX_CRF = {"h264": 51, "hevc": 51, "av1": 63}
# File in the cache folder: what `isoframe bench tune` found to be fast on this machine.
TUNED_SETTINGS = "launch_settings.json"


# Why a door does not offer a field.
_UPLOAD = {"server": "a second upload: a later version"}
_LONGER = {"app": "finished videos are made longer with a button of their own"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """What the engine may use.

    Attributes:
        device: "auto" (CUDA if there is one), "cpu", "cuda" or "cuda:N".
        precision: how the blocks' weights are stored and multiplied: "fp32", "bf16", "fp16", "int8" (int8 times int8),
            "int8-weight" (stored in int8, multiplied in compute_dtype), "fp8" (e4m3, multiplied so where the card can),
            "nf4" (4 bits, multiplied in compute_dtype); None means fp32 on the CPU and bf16 on CUDA.
        compute_dtype: of activations: "auto" is that of a floating-point precision, else fp32 on the CPU and bf16 on
            CUDA; or "fp32", "bf16", "fp16".
        attention: "auto" (torch's on the CPU; on CUDA the fastest of what is installed, measured once), or one by
            name: "sdpa" (torch), "flash-attn", "flash-attn-3", "xformers", or approximate "sageattention", "int8" and
            "int8-fp8" (built in).
        vram: most memory on a CUDA device, as NVML counts it for the process: bytes or "6GiB"; None means 90 % of what
            is free.
        ram: most memory that the engine adds to the process in RAM; None means 60 % of what is available.
        cache_dir: folder of cached embeddings and measured choices; None means $ISOFRAME_CACHE, else the
            platform's cache folder.
        local_files_only: never ask the Hub; a file that is not cached is an error.
        vae_tiles: run the VAE in tiles: less memory, slightly different pixels (approximate). True always does, False
            never; None does where the budget needs it.
        max_queued_jobs: jobs of :meth:`Engine.submit` that may wait.
    """

    device: str = setting("auto", "auto, cpu, cuda or cuda:N.", panel=MACHINE)
    precision: str | None = setting(
        None,
        f"{', '.join(PRECISIONS)} (default: fp32 on the CPU, bf16 on CUDA).",
        panel=MACHINE,
        choices=PRECISIONS,
    )
    compute_dtype: str = setting(
        "auto", f"Of the activations: {', '.join(COMPUTE_DTYPES)}.", panel=MACHINE, choices=COMPUTE_DTYPES,
        absent={"command": "the precision says it; isoframe plan and convert take another one"},
    )  # fmt: skip
    attention: str = setting(
        "auto",
        f"{', '.join(ATTENTIONS)}; auto measures once which is fastest.",
        panel=MACHINE,
        choices=ATTENTIONS,
    )
    vram: Size | None = setting(
        None, "Most memory on the graphics card, such as 6GiB (default: 90 % of what is free).", panel=MACHINE,
        metavar="SIZE",
    )  # fmt: skip
    ram: Size | None = setting(
        None, "Most memory that is added in RAM, such as 16GiB (default: 60 % of what is available).", panel=MACHINE,
        metavar="SIZE",
    )  # fmt: skip
    cache_dir: str | os.PathLike[str] | None = setting(
        None,
        "Folder of cached embeddings and converted models (default: $ISOFRAME_CACHE, else ~/.cache/isoframe or the "
        "platform's).",
        panel=MACHINE,
    )  # fmt: skip
    local_files_only: bool = setting(False, "Never ask the Hub.", panel=MACHINE)
    vae_tiles: bool | None = setting(
        None,
        "Run the VAE in tiles: less memory, slightly different pixels (default: where the budget needs it).",
        panel=MACHINE, option="--vae-tiles/--no-vae-tiles",
    )  # fmt: skip
    max_queued_jobs: int = 64

    def __post_init__(self) -> None:
        settle_values(self, "cache_dir")
        check_at_least("max_queued_jobs", self.max_queued_jobs, 1)
        check_settings(self)
        if re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is None:
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")
        if self.precision in COMPUTE_DTYPES and self.compute_dtype not in ("auto", self.precision):
            raise ConfigError(
                f"compute_dtype must be auto or {self.precision} with precision={self.precision!r}, "
                f"got {self.compute_dtype!r}"
            )
        for name, size in (("vram", self.vram), ("ram", self.ram)):
            if size is not None:
                parse_size(name, size)

    def cache_path(self) -> Path:
        """Folder of cached files; not created."""
        if self.cache_dir is not None:
            return Path(self.cache_dir)
        if os.environ.get("ISOFRAME_CACHE"):
            return Path(os.environ["ISOFRAME_CACHE"])
        import platformdirs

        return Path(platformdirs.user_cache_dir("isoframe", appauthor=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request(SharedFields):
    """One video to generate from an image and a prompt.

    Attributes:
        image: path, PIL image or uint8 array [H, W], [H, W, 3] or [H, W, 4]; None makes the video from text alone, which
            the published models were not trained for: its first 4 frames are then missing, 36n - 3 are made.
        prompt: what happens; with times, as in "[0s] she sits [2.5s: 4s] she waves", what happens when. Text before
            the first time belongs to all of them.
        negative_prompt: what to avoid; used when ``cfg_scale`` is not 1.
        seconds: wanted length; the video has a whole number of sections (36n + 1 frames at window 9).
        size: (height, width) in pixels; None takes the model's bucket nearest to the image's shape.
        order: "auto" (forward for an F1 checkpoint, else inverted), or as in :class:`SamplingConfig`.
        fps: frames per second of the file.
        crf: quality, 0 (lossless) to 51, with AV1 to 63; the scales of the codecs differ.
        posterior: start latent is the "sample" of the VAE posterior (seeded) or its "mode".
        force: accept more than 3600 seconds and images beyond the usual shapes.
        prompt_spans: prompts with times, in place of times in ``prompt``, which is the base text of all then.
        prompt_blend: seconds around a change of prompt over which the embeddings blend; 0 changes at once.
        codec: "h264" (plays everywhere), "hevc" or "av1".
        end_image: as ``image``: what would follow the last frame. Only with order "inverted".
        end_image_strength: factor of its latent, 0 to 1.
        loop: the start image is the end image too, so that the video can be repeated without a seam.
        video: path of a video to extend by ``seconds``, at its own rate. Its frames stay as they are; ``image`` is the
            start frame that the model keeps in view, the video's first one where it is None.
        base_resolution: pixels that stand for the side of the model's squarest bucket (640 for the published models): all
            buckets are scaled by it, to multiples of 16. None is the model's own; excludes ``size``.
        direction: "forward" continues ``video`` (order "forward"); "backward" makes what comes before it (order
            "inverted").
        guide_images: images that take the place of the start image from their times on, in the order of these. Like
            the times of prompts they count from the start of what is made, and snap to sections.

    The other fields are those of :class:`SamplingConfig`; :meth:`Engine.render_frame` sets target_index.
    """

    image: "str | os.PathLike[str] | Image | object | None" = field(
        metadata=described(
            "Image the video starts from; without one the video is made from text, which the published models were not "
            "trained for.",
            panel=JOB, option="IMAGE", names={"app": "image is_text_alone"},
        )
    )  # fmt: skip
    prompt: str = field(
        metadata=described(
            'What happens in the video; with times, as in "A dog. [0s] It sits. [2.5s: 4s] It barks.", what happens when. '
            "Times snap to sections; text before the first one belongs to all.",
            panel=JOB, option="--prompt -p", limit=8192,
        )
    )  # fmt: skip
    negative_prompt: str = setting(
        "", "What to avoid; used when {cfg_scale} is not 1.", panel=JOB, limit=8192, needs="guidance"
    )
    seconds: float = setting(
        5.0, "Length of the video, rounded to whole sections: 1.2 s each at 30 fps and window 9.", panel=JOB,
        option="--seconds -s", is_positive=True,
    )  # fmt: skip
    size: tuple[int, int] | None = setting(
        None,
        "Height x width in pixels, multiples of 16 (default: the size nearest in shape that the model was trained on, 64x64 "
        "for demo); the image is scaled and cropped to it.",
        panel=JOB, names={"server": "height width"}, metavar="HxW",
        absent={"app": "two numbers need a field of their own: a later version"},
    )  # fmt: skip
    order: str = setting(
        "auto", f"auto (forward for F1 models), {' or '.join(ORDERS)}. Inverted makes the end first.", panel=JOB,
        hint="Experimental: endpoints, planned, or places such as 3,0,2,1 in the order they are made (from 0).",
        choices=("auto", *ORDERS), untrained=UNTRAINED_ORDERS,
    )  # fmt: skip
    fps: int = setting(30, "Frames per second of the file.", panel=OUTPUT, least=1, limit=120)
    crf: int = setting(
        16, "Quality: 0 lossless, 51 worst (av1: 63).", panel=OUTPUT, least=0, most=max(MAX_CRF.values())
    )
    posterior: str = setting(
        "sample", "Start latent: sample (seeded) or mode.", panel=JOB, choices=POSTERIORS, needs="start"
    )
    force: bool = setting(
        False, "Accept more than 3600 seconds and images of unusual size or shape.", panel=JOB,
        option="--force --force-size",
        absent=dict.fromkeys(("server", "app"), "would lift limits that protect who offers the door"),
    )  # fmt: skip
    prompt_spans: tuple[PromptSpan, ...] = setting(
        (),
        "Prompts with times.",
        panel=JOB,
        absent=dict.fromkeys(DOORS, "a prompt says the same with its times"),
    )
    prompt_blend: float = setting(
        0.0, "Blend the embeddings of prompts over so many seconds around a change.", panel=JOB, metavar="SECONDS",
        least=0, limit=3600, needs="times"
    )  # fmt: skip
    codec: str = setting(
        "h264", "h264 (plays everywhere), hevc or av1 (smaller files).", panel=OUTPUT, choices=CODECS,
        absent={"app": "a browser plays h264 alone for certain"},
    )  # fmt: skip
    end_image: "str | os.PathLike[str] | Image | object | None" = setting(
        None, "Image that would follow the last frame; inverted order.", panel=JOB, absent=_UPLOAD
    )
    end_image_strength: float = setting(1.0, "0 to 1.", panel=JOB, least=0, most=1, needs="end")
    loop: bool = setting(False, "End where the image begins: repeats without a seam.", panel=JOB)
    video: str | os.PathLike[str] | None = setting(
        None, "Video to extend by {seconds}; its frames stay as they are, and IMAGE may be left out.", panel=JOB,
        option="--extend", metavar="VIDEO", absent=_UPLOAD | _LONGER,
    )  # fmt: skip
    direction: str = setting(
        "forward", "forward continues {video}, backward makes what comes before it.", panel=JOB,
        choices=tuple(DIRECTIONS), absent=_UPLOAD | _LONGER, needs="video"
    )  # fmt: skip
    base_resolution: int | None = setting(
        None,
        "Scale the model's sizes so that the squarest has this side, 64 to 1280, such as 480 for a small card (published "
        "models: 640; others are outside of their training).",
        panel=JOB, metavar="PIXELS", least=64, most=1280,
    )  # fmt: skip
    guide_images: tuple[GuideImage, ...] = setting(
        (),
        "Image that takes the place of IMAGE from a time on, such as 2.4s=later.png; times snap to sections; repeatable. No "
        "published model was trained with it.",
        panel=JOB, option="--guide-image", names={"app": "guide_images guide_times"}, metavar="TIMEs=FILE",
        absent=_UPLOAD,
    )  # fmt: skip

    def __post_init__(self) -> None:
        settle_values(self, "image", "end_image", "video", "history_codebook")
        self._check_shared()
        if self.seconds > 3600 and not self.force:
            raise ConfigError(
                f"seconds must be at most 3600, got {self.seconds}; force=True (--force) accepts more"
            )
        if self.crf > MAX_CRF[self.codec]:
            raise ConfigError(
                f"crf must be from 0 (lossless) to {MAX_CRF[self.codec]} for {self.codec}, got {self.crf}"
            )
        if self.base_resolution is not None and self.size is not None:
            raise ConfigError(
                f"base_resolution and size exclude each other, got {self.base_resolution} and {self.size}"
            )
        if self.size is not None and (len(self.size) != 2 or any(n < 16 or n % 16 for n in self.size)):
            raise ConfigError(f"size must be (height, width), multiples of 16, got {self.size}")
        self._check_prompts()
        self._check_end()
        self._check_guides()

    @property
    def has_end_image(self) -> bool:
        """Whether the end of the video is given."""
        return self.end_image is not None or self.loop

    def _check_end(self) -> None:
        if self.loop and (self.end_image is not None or self.image is None):
            given = "an end_image too" if self.image is not None else "no image"
            raise ConfigError(f"loop takes the image as the end image, got {given}")
        if self.has_end_image and self.order not in ("auto", "inverted"):
            raise ConfigError(f"end_image and loop need order='inverted', got order={self.order!r}")
        if self.video is None:
            return
        if self.has_end_image:
            raise ConfigError("video excludes end_image and loop: the video says how it goes on")
        if self.order not in ("auto", DIRECTIONS[self.direction]):
            raise ConfigError(
                f"direction {self.direction!r} needs order={DIRECTIONS[self.direction]!r}, got {self.order!r}"
            )

    def _check_guides(self) -> None:
        if not isinstance(self.guide_images, tuple) or not all(
            isinstance(guide, GuideImage) for guide in self.guide_images
        ):
            raise ConfigError(f"guide_images must be a tuple of GuideImage, got {self.guide_images!r}")
        for guide in self.guide_images:
            if guide.image is None or not is_finite(guide.time):
                raise ConfigError(
                    f"guide_images must have an image and a time in seconds, got {guide.time!r}"
                )
        if self.guide_images:
            self._check_guided("guide_images")
        plan_guides(self.guide_images, self.section_times)

    @property
    def guide_places(self) -> tuple[int, ...]:
        """The section (video order, from 0) that begins at each guide image."""
        return plan_guides(self.guide_images, self.section_times)

    def _check_prompts(self) -> None:
        if not all(isinstance(span, PromptSpan) for span in self.prompt_spans):
            raise ConfigError(f"prompt_spans must be a tuple of PromptSpan, got {self.prompt_spans!r}")
        texts = [("prompt", self.prompt), ("negative_prompt", self.negative_prompt)]
        texts += [("prompt_spans", span.text) for span in self.prompt_spans]
        for argument, text in texts:
            check_text(argument, text)
        self.prompt_timeline()
        for argument, text in () if self.force else texts:
            # Only the prompt may have times, which are Isoframe's own notation.
            check_notation(argument, without_times(text) if argument == "prompt" else text)

    def notes(self) -> tuple[str, ...]:
        """What of the request changes nothing, in sentences: for whoever asked, before the work begins."""
        foreign = foreign_notation(without_times(self.prompt)) or foreign_notation(self.negative_prompt)
        told = () if foreign is None else (f"{foreign!r} in the prompt is read as text: {NOTATION_HELP}",)
        return (*unused_options(self), *told)

    def prompt_timeline(self) -> PromptTimeline:
        """Which prompt every section has."""
        return plan_prompts(
            self.prompt, self.prompt_spans, self.section_times, blend_seconds=self.prompt_blend
        )

    @property
    def section_times(self) -> SectionTimes:
        """How a video is divided into sections, which times of prompts and guides snap to."""
        return SectionTimes(
            num_sections=self.num_sections, section_frames=4 * self.latent_window_size, fps=self.fps,
            num_leading=self.num_leading_frames,
        )  # fmt: skip

    @property
    def num_leading_frames(self) -> int:
        """Frames of what is made less those of its sections, which are 4 for each latent.

        The start image is one; without it the first latent stands for one frame, not four; a video that goes on has the
        frame before its sections already.
        """
        if self.video is not None:
            return 0 if self.direction == "forward" else 1
        return -3 if self.image is None else 1

    def section_seconds(self, place: int) -> float:
        """When section ``place`` (video order, from 0) begins, from the start of what is made."""
        return self.section_times.start(place)

    @property
    def num_sections(self) -> int:
        """Sections nearest to ``seconds``; ties round to even, as the published program rounds."""
        return max(round(self.seconds * self.fps / (4 * self.latent_window_size)), 1)

    def sampling(self, default_order: str = "inverted") -> SamplingConfig:
        """The latent part of the request; ``default_order`` stands in for order "auto"."""
        shared = {field.name for field in fields(SamplingConfig)} - {"order", "num_sections"}
        return SamplingConfig(
            num_sections=self.num_sections,
            order=default_order if self.order == "auto" else self.order,
            **{name: getattr(self, name) for name in shared},
        )
