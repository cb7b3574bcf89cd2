"""Configuration: what the engine may use, and what one job asks for."""

import difflib
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from ..errors import ConfigError
from .guides import GuideImage, plan_guides, section_seconds
from .prompts import PromptSpan, PromptTimeline, plan_prompts
from .schedule import Schedule, check_sides, check_window, published_schedule, untrained_schedule
from .sizes import Size, parse_size

if TYPE_CHECKING:
    from PIL.Image import Image

ORDERS = ("inverted", "forward")
# Orders that no published checkpoint was trained for.
UNTRAINED_ORDERS = ("endpoints", "planned", "custom")
ALL_ORDERS = (*ORDERS, *UNTRAINED_ORDERS)
SAMPLERS = ("unipc", "unipc-bh2", "euler")
STEP_CACHES = ("none", "teacache", "magcache")
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
# What an end image is to the sections: it follows the last one alone, or stays in the history of all.
END_IMAGE_USES = ("first-section", "history")
# Where a video is extended to, and the order of sections that goes there.
DIRECTIONS = {"forward": "forward", "backward": "inverted"}
# Codecs of video files, and the worst quality of each.
CODECS = ("h264", "hevc", "av1")
MAX_CRF = {"h264": 51, "hevc": 51, "av1": 63}
# File in the cache folder: what `isoframe bench tune` found to be fast on this machine.
TUNED_SETTINGS = "launch_settings.json"


class _Sections(TypedDict):
    """Arguments of what places times on sections."""

    num_sections: int
    section_frames: int
    fps: int
    num_leading: int


def check_choice(argument: str, value: str, choices: Iterable[str]) -> None:
    """Raise :class:`ConfigError` unless ``value`` is one of ``choices``; the message suggests the nearest."""
    choices = tuple(choices)
    if value in choices:
        return
    nearest = difflib.get_close_matches(str(value), choices, n=1, cutoff=0.5)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigError(f"{argument} must be one of {', '.join(choices)}, got {value!r}{hint}")


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

    device: str = "auto"
    precision: str | None = None
    compute_dtype: str = "auto"
    attention: str = "auto"
    vram: Size | None = None
    ram: Size | None = None
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    vae_tiles: bool | None = None
    max_queued_jobs: int = 64

    def __post_init__(self) -> None:
        _check_at_least("max_queued_jobs", self.max_queued_jobs, 1)
        if re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is None:
            raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {self.device!r}")
        if self.precision is not None:
            check_choice("precision", self.precision, PRECISIONS)
        check_choice("compute_dtype", self.compute_dtype, COMPUTE_DTYPES)
        if self.precision in COMPUTE_DTYPES and self.compute_dtype not in ("auto", self.precision):
            raise ConfigError(
                f"compute_dtype must be auto or {self.precision} with precision={self.precision!r}, "
                f"got {self.compute_dtype!r}"
            )
        check_choice("attention", self.attention, ATTENTIONS)
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
class LoraStrength:
    """A LoRA of one job. The same LoRA may be given several times, with other strengths for other sections.

    Attributes:
        source: a .safetensors file, a folder with one, or the name of a loaded LoRA.
        strength: factor of its change; 0 leaves it out, 1 is as trained.
        sections: where it is at work: in generation order, from 0; None means everywhere.
    """

    source: str | os.PathLike[str]
    strength: float = 1.0
    sections: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not os.fspath(self.source):
            raise ConfigError("source of a LoRA must be a file or a name, got an empty one")
        if not _is_finite(self.strength):
            raise ConfigError(f"strength of a LoRA must be a finite number, got {self.strength!r}")
        for section in self.sections or ():
            _check_at_least("sections of a LoRA", section, 0)

    def is_active(self, section: int) -> bool:
        """Whether it changes ``section`` (generation order, from 0)."""
        return self.strength != 0 and (self.sections is None or section in self.sections)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig:
    """How one video is sampled, in latents.

    Attributes:
        num_sections: sections to generate; each adds ``latent_window_size`` latent frames.
        num_steps: denoising steps per section.
        order: "inverted" (from the end back to the start image) or "forward" (F1); experimental, with allow_untrained:
            "endpoints" (the last section, then the others from the start), "planned" (every fourth section from the end,
            then those between them) or "custom" (section_order).
        guidance_scale: distilled guidance, fed to the model as an embedding.
        cfg_scale: true classifier-free guidance; 1.0 runs no second pass.
        cfg_rescale: share of the guided velocity that is rescaled to the conditional one's deviation, 0 to 1.
        seed: seed of the job's noise.
        latent_window_size: latent frames denoised in one section.
        sampler: "unipc" (bh1), "unipc-bh2" or "euler".
        step_cache: "none" (exact), or approximate: "teacache" skips steps whose input changed little, "magcache" steps
            whose residual is known to change little.
        step_cache_threshold: accumulated relative change at which TeaCache computes again; accumulated relative error
            up to which MagCache skips.
        step_cache_max_skips: steps that MagCache skips in a row.
        step_cache_retention: share of the first steps that MagCache computes, 0 to 1.
        latent_paddings: windows between the start frame and each section, in generation order; None is the
            published rule. Only with order "inverted".
        loras: LoRAs that are at work together.
        end_image_use: where an end latent is: "first-section" (it follows the section that is made first, the end of the
            video) or "history" (later sections see it too, further and further away). Only with order "inverted".
        section_order: places of the sections in the video, from 0, in the order they are made; with order "custom".
        allow_untrained: accept orders that no published checkpoint was trained for.
        target_index: position of one latent frame that is made alone, 1 or more; the start latent is 0. Only with one
            section, window 1 and order "inverted".
        history_codebook: file of centroids, to which the latent pixels of the history are moved; experimental, with
            allow_untrained.
        guide_places: sections (video order, from 0) from which on a guide of the conditioning takes the place of the
            start image, up to the next one. Not with latent_paddings, target_index or an untrained order.
        schedule: how the history is packed, in the paper's notation (:class:`~isoframe.engine.request.schedule.Schedule`); None is the
            published layout of the order. All others are experimental, with allow_untrained.
    """

    num_sections: int
    num_steps: int = 25
    order: str = "inverted"
    guidance_scale: float = 10.0
    cfg_scale: float = 1.0
    cfg_rescale: float = 0.0
    seed: int = 31337
    latent_window_size: int = 9
    sampler: str = "unipc"
    step_cache: str = "none"
    step_cache_threshold: float = 0.15
    step_cache_max_skips: int = 4
    step_cache_retention: float = 0.2
    latent_paddings: tuple[int, ...] | None = None
    loras: tuple[LoraStrength, ...] = ()
    end_image_use: str = "first-section"
    section_order: tuple[int, ...] | None = None
    allow_untrained: bool = False
    target_index: int | None = None
    history_codebook: str | os.PathLike[str] | None = None
    guide_places: tuple[int, ...] = ()
    schedule: str | None = None

    def __post_init__(self) -> None:
        _check_at_least("num_sections", self.num_sections, 1)
        check_choice("order", self.order, ALL_ORDERS)
        _check_sampling(self)
        _check_order(self)
        _check_schedule(self)
        self._check_guides()
        if self.target_index is not None:
            _check_at_least("target_index", self.target_index, 1)
            if self.schedule is not None:
                raise ConfigError(f"target_index needs schedule=None, got {self.schedule!r}")
            if (self.num_sections, self.latent_window_size, self.order) != (1, 1, "inverted"):
                raise ConfigError(
                    "target_index needs num_sections=1, latent_window_size=1 and order='inverted', got "
                    f"{self.num_sections}, {self.latent_window_size} and {self.order!r}"
                )
        if self.latent_paddings is None:
            return
        for padding in self.latent_paddings:
            _check_at_least("latent_paddings", padding, 0)
        if self.order != "inverted":
            raise ConfigError(f"latent_paddings need order='inverted', got order={self.order!r}")
        if len(self.latent_paddings) != self.num_sections:
            raise ConfigError(
                f"latent_paddings must have num_sections = {self.num_sections} entries, "
                f"got {len(self.latent_paddings)}"
            )
        if self.latent_paddings[-1] != 0:
            raise ConfigError(f"latent_paddings must end with 0, got {self.latent_paddings}")

    def _check_guides(self) -> None:
        places = self.guide_places
        for place in places:
            _check_at_least("guide_places", place, 1)
        if list(places) != sorted(set(places)) or max(places, default=0) >= self.num_sections:
            raise ConfigError(
                f"guide_places must increase and be below num_sections = {self.num_sections}, got {places}"
            )
        _check_guided(self, "guide_places", has_guides=bool(places))

    @property
    def untrained_schedule(self) -> Schedule | None:
        """The packing schedule; None for the published layout of the order."""
        return untrained_schedule(self.schedule, self.order, self.latent_window_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
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
        target_index: as in :class:`SamplingConfig`; :meth:`Engine.render_frame` sets it.
        direction: "forward" continues ``video`` (order "forward"); "backward" makes what comes before it (order
            "inverted").
        guide_images: images that take the place of the start image from their times on, in the order of these. Like
            the times of prompts they count from the start of what is made, and snap to sections.

    The other fields are those of :class:`SamplingConfig`.
    """

    image: "str | os.PathLike[str] | Image | object | None"
    prompt: str
    negative_prompt: str = ""
    seconds: float = 5.0
    size: tuple[int, int] | None = None
    order: str = "auto"
    fps: int = 30
    crf: int = 16
    num_steps: int = 25
    guidance_scale: float = 10.0
    cfg_scale: float = 1.0
    cfg_rescale: float = 0.0
    seed: int = 31337
    latent_window_size: int = 9
    sampler: str = "unipc"
    step_cache: str = "none"
    step_cache_threshold: float = 0.15
    step_cache_max_skips: int = 4
    step_cache_retention: float = 0.2
    latent_paddings: tuple[int, ...] | None = None
    loras: tuple[LoraStrength, ...] = ()
    posterior: str = "sample"
    force: bool = False
    prompt_spans: tuple[PromptSpan, ...] = ()
    prompt_blend: float = 0.0
    codec: str = "h264"
    end_image: "str | os.PathLike[str] | Image | object | None" = None
    end_image_use: str = "first-section"
    end_image_strength: float = 1.0
    loop: bool = False
    video: "str | os.PathLike[str] | None" = None
    direction: str = "forward"
    section_order: tuple[int, ...] | None = None
    allow_untrained: bool = False
    base_resolution: int | None = None
    target_index: int | None = None
    history_codebook: str | os.PathLike[str] | None = None
    guide_images: tuple[GuideImage, ...] = ()
    schedule: str | None = None

    def __post_init__(self) -> None:
        if not _is_finite(self.seconds) or self.seconds <= 0:
            raise ConfigError(f"seconds must be a positive number, got {self.seconds!r}")
        if self.seconds > 3600 and not self.force:
            raise ConfigError(
                f"seconds must be at most 3600, got {self.seconds}; force=True (--force) accepts more"
            )
        check_choice("order", self.order, ("auto", *ALL_ORDERS))
        check_choice("posterior", self.posterior, POSTERIORS)
        _check_at_least("fps", self.fps, 1)
        _check_at_least("crf", self.crf, 0)
        check_choice("codec", self.codec, CODECS)
        if self.crf > MAX_CRF[self.codec]:
            raise ConfigError(
                f"crf must be from 0 (lossless) to {MAX_CRF[self.codec]} for {self.codec}, got {self.crf}"
            )
        self._check_base_resolution()
        if self.size is not None and (len(self.size) != 2 or any(n < 16 or n % 16 for n in self.size)):
            raise ConfigError(f"size must be (height, width), multiples of 16, got {self.size}")
        _check_sampling(self)
        _check_order(self)
        _check_schedule(self)
        self._check_prompts()
        self._check_end()
        self._check_guides()

    @property
    def has_end_image(self) -> bool:
        """Whether the end of the video is given."""
        return self.end_image is not None or self.loop

    def _check_end(self) -> None:
        if not _is_finite(self.end_image_strength) or not 0 <= self.end_image_strength <= 1:
            raise ConfigError(f"end_image_strength must be from 0 to 1, got {self.end_image_strength!r}")
        if self.loop and (self.end_image is not None or self.image is None):
            given = "an end_image too" if self.image is not None else "no image"
            raise ConfigError(f"loop takes the image as the end image, got {given}")
        if self.has_end_image and self.order not in ("auto", "inverted"):
            raise ConfigError(f"end_image and loop need order='inverted', got order={self.order!r}")
        check_choice("direction", self.direction, DIRECTIONS)
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
            if guide.image is None or not _is_finite(guide.time):
                raise ConfigError(
                    f"guide_images must have an image and a time in seconds, got {guide.time!r}"
                )
        _check_guided(self, "guide_images", has_guides=bool(self.guide_images))
        plan_guides(self.guide_images, **self._sections_of())

    @property
    def guide_places(self) -> tuple[int, ...]:
        """The section (video order, from 0) that begins at each guide image."""
        return plan_guides(self.guide_images, **self._sections_of())

    def _check_base_resolution(self) -> None:
        if self.base_resolution is None:
            return
        _check_at_least("base_resolution", self.base_resolution, 64)
        if self.base_resolution > 1280 or self.size is not None:
            given = f"{self.base_resolution} and size={self.size}" if self.size else str(self.base_resolution)
            raise ConfigError(f"base_resolution must be from 64 to 1280, and size None, got {given}")

    def _check_prompts(self) -> None:
        if not _is_finite(self.prompt_blend) or self.prompt_blend < 0:
            raise ConfigError(f"prompt_blend must be a number of seconds >= 0, got {self.prompt_blend!r}")
        if not all(isinstance(span, PromptSpan) for span in self.prompt_spans):
            raise ConfigError(f"prompt_spans must be a tuple of PromptSpan, got {self.prompt_spans!r}")
        self.prompt_timeline()

    def prompt_timeline(self) -> PromptTimeline:
        """Which prompt every section has."""
        return plan_prompts(
            self.prompt,
            self.prompt_spans,
            **self._sections_of(),
            blend_seconds=self.prompt_blend,
        )

    def _sections_of(self) -> "_Sections":
        return {
            "num_sections": self.num_sections,
            "section_frames": 4 * self.latent_window_size,
            "fps": self.fps,
            "num_leading": self.num_leading_frames,
        }

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
        return section_seconds(
            place,
            section_frames=4 * self.latent_window_size,
            fps=self.fps,
            num_leading=self.num_leading_frames,
        )

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


def _check_at_least(argument: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{argument} must be an integer of at least {least}, got {value!r}")


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_order(config: SamplingConfig | Request) -> None:
    if (config.section_order is None) != (config.order != "custom"):
        raise ConfigError(
            f"section_order and order='custom' need each other, got {config.section_order} and order={config.order!r}"
        )
    if config.history_codebook is not None and not config.allow_untrained:
        raise ConfigError(
            "history_codebook needs allow_untrained=True (--allow-untrained): no published checkpoint was trained with it"
        )
    if config.order not in UNTRAINED_ORDERS:
        return
    if not config.allow_untrained:
        raise ConfigError(
            f"order {config.order!r} needs allow_untrained=True (--allow-untrained): no published checkpoint was trained "
            "for it"
        )
    if config.step_cache == "magcache":
        raise ConfigError(
            f"step_cache 'magcache' has no ratios for order {config.order!r}; take teacache or none"
        )
    if config.section_order is not None and sorted(config.section_order) != list(range(config.num_sections)):
        raise ConfigError(
            f"section_order must hold every place from 0 to {config.num_sections - 1} once, got {config.section_order}"
        )


def _check_guided(config: SamplingConfig | Request, argument: str, *, has_guides: bool) -> None:
    if not has_guides:
        return
    if config.order in UNTRAINED_ORDERS:
        raise ConfigError(f"{argument} need order='inverted' or 'forward', got {config.order!r}")
    for name in ("latent_paddings", "target_index"):
        if getattr(config, name) is not None:
            raise ConfigError(f"{argument} and {name} exclude each other, got both")
    if config.schedule is None:
        return
    schedule = Schedule.parse(config.schedule)
    if schedule.num_frames("start") != 1:
        raise ConfigError(
            f"{argument} need a schedule that begins with one frame, such as f1k1_x_g9_f1k1f2k2, got {schedule}"
        )


def _check_schedule(config: SamplingConfig | Request) -> None:
    if config.schedule is None:
        return
    if not isinstance(config.schedule, str):
        raise ConfigError(
            f"schedule must be text such as f1k1_x_g9_f1k1f2k2f16k4_td, got {config.schedule!r}"
        )
    order, window = config.order, config.latent_window_size
    schedule = untrained_schedule(config.schedule, order, window)
    if schedule is None:
        return
    check_window(schedule, window)
    if order == "auto":
        # The checkpoint says which order that is.
        return
    check_sides(schedule, order)
    if not config.allow_untrained:
        trained = (
            ""
            if order in UNTRAINED_ORDERS
            else f", in this order only for {published_schedule(order, window)}"
        )
        raise ConfigError(
            f"schedule {schedule} needs allow_untrained=True (--allow-untrained): no published checkpoint was trained for "
            f"it{trained}"
        )
    if config.step_cache == "magcache":
        raise ConfigError(
            f"step_cache 'magcache' has no ratios for schedule {schedule}; take teacache or none"
        )


def _check_sampling(config: SamplingConfig | Request) -> None:
    _check_at_least("num_steps", config.num_steps, 1)
    _check_at_least("latent_window_size", config.latent_window_size, 1)
    _check_at_least("seed", config.seed, 0)
    if config.seed >= 2**63:
        raise ConfigError(f"seed must be below 2**63, got {config.seed}")
    check_choice("sampler", config.sampler, SAMPLERS)
    if not isinstance(config.loras, tuple) or not all(
        isinstance(lora, LoraStrength) for lora in config.loras
    ):
        raise ConfigError(f"loras must be a tuple of LoraStrength, got {config.loras!r}")
    for lora in config.loras:
        if max(lora.sections or (0,)) >= config.num_sections:
            raise ConfigError(
                f"sections of a LoRA must be below num_sections = {config.num_sections}, got {lora.sections} (counted "
                "from 0; --lora counts from 1)"
            )
    check_choice("step_cache", config.step_cache, STEP_CACHES)
    check_choice("end_image_use", config.end_image_use, END_IMAGE_USES)
    _check_at_least("step_cache_max_skips", config.step_cache_max_skips, 1)
    for name in (
        "guidance_scale",
        "cfg_scale",
        "cfg_rescale",
        "step_cache_threshold",
        "step_cache_retention",
    ):
        value = getattr(config, name)
        if not _is_finite(value) or value < 0:
            raise ConfigError(f"{name} must be a finite number >= 0, got {value!r}")
    for name in ("cfg_rescale", "step_cache_retention"):
        if getattr(config, name) > 1:
            raise ConfigError(f"{name} must be from 0 to 1, got {getattr(config, name)}")
