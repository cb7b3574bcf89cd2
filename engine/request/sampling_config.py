"""How the latents of a video are sampled: the fields that a request shares with its sampling, and their checks."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .fields import DOORS, JOB, check_at_least, check_settings, is_finite, setting, settle_values
from .schedule import Schedule, check_sides, check_window, published_schedule, untrained_schedule

ORDERS = ("inverted", "forward")
# Orders that no published checkpoint was trained for.
UNTRAINED_ORDERS = ("endpoints", "planned", "custom")
ALL_ORDERS = (*ORDERS, *UNTRAINED_ORDERS)
SAMPLERS = ("unipc", "unipc-bh2", "euler")
STEP_CACHES = ("none", "teacache", "magcache")
# What an end image is to the sections: it follows the last one alone, or stays in the history of all.
END_IMAGE_USES = ("first-section", "history")

# Why a door does not offer a field.
EXPERIMENTAL = dict.fromkeys(("server", "app", "comfyui"), "experimental: a later version")


# More than any job has: a day of video at window 1.
MAX_SECTIONS = 648_000


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
        settle_values(self, "source")
        if not isinstance(self.source, str | os.PathLike) or not os.fspath(self.source):
            raise ConfigError(f"source of a LoRA must be a file or a name, got {self.source!r}")
        if not is_finite(self.strength):
            raise ConfigError(f"strength of a LoRA must be a finite number, got {self.strength!r}")
        for section in self.sections or ():
            check_at_least("sections of a LoRA", section, 0)

    def is_active(self, section: int) -> bool:
        """Whether it changes ``section`` (generation order, from 0)."""
        return self.strength != 0 and (self.sections is None or section in self.sections)


def parse_sections(text: str) -> tuple[int, ...]:
    """Sections from 0 out of ``"1,3-5"``, which counts from 1.

    Raises:
        ValueError: it is no such text, or counts further than any job has sections.
    """
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if int(last or first) > MAX_SECTIONS:
            raise ValueError(text)
        found += range(int(first) - 1, int(last or first))
    if not found:
        raise ValueError(text)
    return tuple(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Experimental:
    """What hardly anybody needs, most of it without a published checkpoint that was trained for it.

    Attributes:
        allow_untrained: accept orders, schedules and codebooks that no published checkpoint was trained for.
        section_order: places of the sections in the video, from 0, in the order they are made; with order "custom".
        schedule: how the history is packed, in the paper's notation (:class:`~isoframe.engine.request.schedule.Schedule`);
            None is the published layout of the order. All others need allow_untrained.
        history_codebook: file of centroids, to which the latent pixels of the history are moved; needs allow_untrained.
        cfg_rescale: share of the guided velocity that is rescaled to the conditional one's deviation, 0 to 1.
        step_cache_max_skips: steps that MagCache skips in a row.
        step_cache_retention: share of the first steps that MagCache computes, 0 to 1.
    """

    allow_untrained: bool = setting(
        False, "Accept an order, a schedule or a codebook that no published model was trained for.", panel=JOB,
        absent=EXPERIMENTAL,
    )  # fmt: skip
    section_order: tuple[int, ...] | None = setting(
        None, "Places of the sections in the order they are made.",
        absent={**EXPERIMENTAL, "command": "--order takes it"},
    )  # fmt: skip
    schedule: str | None = setting(
        None,
        "Experimental: how the history is packed, such as f1k1_x_g9_f1k1f4k2f16k4_td (default: as the model was trained).",
        metavar="NOTATION", absent=EXPERIMENTAL,
    )  # fmt: skip
    history_codebook: str | os.PathLike[str] | None = setting(
        None,
        "Experimental: move the latent pixels of the history to the centroids that `isoframe codebook` fitted.",
        metavar="FILE", absent=EXPERIMENTAL,
    )  # fmt: skip
    cfg_rescale: float = setting(0.0, "0 to 1; only with {cfg_scale}.", least=0, most=1, needs="guidance")
    step_cache_max_skips: int = setting(
        4, "Steps that magcache skips in a row.", least=1, limit=1000, needs="magcache"
    )
    step_cache_retention: float = setting(
        0.2, "Share of the first steps that magcache computes, 0 to 1.", least=0, most=1, needs="magcache"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFields(Experimental):
    """What a :class:`~isoframe.engine.Request` and its :class:`SamplingConfig` both say.

    Attributes:
        num_steps: denoising steps per section.
        order: "inverted" (from the end back to the start image) or "forward" (F1); experimental, with allow_untrained:
            "endpoints" (the last section, then the others from the start), "planned" (every fourth section from the end,
            then those between them) or "custom" (section_order).
        guidance_scale: distilled guidance, fed to the model as an embedding.
        cfg_scale: true classifier-free guidance; 1.0 runs no second pass.
        seed: seed of the job's noise.
        latent_window_size: latent frames denoised in one section.
        sampler: "unipc" (bh1), "unipc-bh2" or "euler".
        step_cache: "none" (exact), or approximate: "teacache" skips steps whose input changed little, "magcache" steps
            whose residual is known to change little.
        step_cache_threshold: accumulated relative change at which TeaCache computes again; accumulated relative error
            up to which MagCache skips.
        latent_paddings: windows between the start frame and each section, in generation order; None is the
            published rule. Only with order "inverted".
        loras: LoRAs that are at work together.
        end_image_use: where an end latent is: "first-section" (it follows the section that is made first, the end of the
            video) or "history" (later sections see it too, further and further away). Only with order "inverted".
        target_index: position of one latent frame that is made alone, 1 or more; the start latent is 0. Only with one
            section, window 1 and order "inverted".
    """

    num_steps: int = setting(
        25,
        "Denoising steps per section.",
        option="--steps",
        names={"comfyui": "steps"},
        least=1,
        limit=10_000,
    )
    order: str = setting(
        "inverted",
        f"{' or '.join(ORDERS)}. Inverted makes the end first.",
        choices=ORDERS,
        untrained=UNTRAINED_ORDERS,
    )
    guidance_scale: float = setting(10.0, "Distilled guidance.", option="--guidance", least=0, limit=1000)
    cfg_scale: float = setting(
        1.0, "True classifier-free guidance; 1 is off, else twice the time.",
        option="--cfg", names={"comfyui": "cfg"}, least=0, limit=1000,
    )  # fmt: skip
    seed: int = setting(31337, "Seed of the noise.", least=0, most=2**63 - 1)
    latent_window_size: int = setting(
        9, "Latent frames per section (4 frames each).", option="--window", least=1, limit=64
    )
    sampler: str = setting("unipc", ", ".join(SAMPLERS), choices=SAMPLERS)
    step_cache: str = setting(
        "none", f"{', '.join(STEP_CACHES)}; the caches are faster, approximate.", choices=STEP_CACHES
    )
    step_cache_threshold: float = setting(
        0.15, "Higher skips more steps.", least=0, limit=1000, needs="step cache"
    )
    latent_paddings: tuple[int, ...] | None = setting(
        None,
        "Windows between the start image and each section in the order they are made, such as 3,2,1,0 (default: the "
        "published rule); inverted order.",
        option="--paddings", metavar="N,N,...",
        absent=dict.fromkeys(("server", "app", "comfyui"), "a list needs a field of its own: a later version"),
    )  # fmt: skip
    loras: tuple[LoraStrength, ...] = setting(
        (),
        "A LoRA as .safetensors, such as style.safetensors:0.8; @1,3-5 limits it to these sections in the order they are "
        "made; repeatable.",
        option="--lora", names={"app": "loras lora_strength"}, metavar="FILE[:STRENGTH[@SECTIONS]]",
    )  # fmt: skip
    end_image_use: str = setting(
        "first-section",
        "first-section (the end of the video, which is made first, sees it) or history (all sections do).",
        panel=JOB, choices=END_IMAGE_USES, absent={"comfyui": "it has no socket for an end latent: a later version"}, needs="end"
    )  # fmt: skip
    target_index: int | None = setting(
        None, "The latent frame that is made alone.",
        absent=dict.fromkeys(DOORS, "isoframe frame and Engine.render_frame set it"),
    )  # fmt: skip

    if TYPE_CHECKING:

        @property
        def num_sections(self) -> int:
            """Sections to generate."""

    def _check_shared(self) -> None:
        check_settings(self)
        if not isinstance(self.loras, tuple) or not all(
            isinstance(lora, LoraStrength) for lora in self.loras
        ):
            raise ConfigError(f"loras must be a tuple of LoraStrength, got {self.loras!r}")
        for lora in self.loras:
            if max(lora.sections or (0,)) >= self.num_sections:
                raise ConfigError(
                    f"sections of a LoRA must be below num_sections = {self.num_sections}, got {lora.sections} (counted "
                    "from 0; --lora counts from 1)"
                )
        self._check_section_order()
        self._check_trained()

    def _check_section_order(self) -> None:
        if (self.section_order is None) != (self.order != "custom"):
            raise ConfigError(
                f"section_order and order='custom' need each other, got {self.section_order} and order={self.order!r}"
            )
        if self.section_order is not None and sorted(self.section_order) != list(range(self.num_sections)):
            raise ConfigError(
                f"section_order must hold every place from 0 to {self.num_sections - 1} once, got {self.section_order}"
            )

    def _check_trained(self) -> None:
        """The one guard of what no published checkpoint was trained for, and MagCache has no ratios for."""
        order, schedule = self.order, self._checked_schedule()
        orders = [f"order {order!r}"] if order in UNTRAINED_ORDERS else []
        schedules = [] if schedule is None else [f"schedule {schedule}"]
        codebooks = [] if self.history_codebook is None else ["history_codebook"]
        for subject in (*codebooks, *orders, *schedules):
            if not self.allow_untrained:
                trained = (
                    f", in this order only for {published_schedule(order, self.latent_window_size)}"
                    if subject in schedules and not orders
                    else ""
                )
                raise ConfigError(
                    f"{subject} needs allow_untrained=True (--allow-untrained): no published checkpoint was trained for "
                    f"it{trained}"
                )
            if self.step_cache == "magcache" and subject not in codebooks:
                raise ConfigError(f"step_cache 'magcache' has no ratios for {subject}; take teacache or none")

    def _checked_schedule(self) -> Schedule | None:
        """The packing schedule; None for a published one, and where the checkpoint says which order that is of."""
        if self.schedule is not None and not isinstance(self.schedule, str):
            raise ConfigError(
                f"schedule must be text such as f1k1_x_g9_f1k1f2k2f16k4_td, got {self.schedule!r}"
            )
        schedule = untrained_schedule(self.schedule, self.order, self.latent_window_size)
        if schedule is None:
            return None
        check_window(schedule, self.latent_window_size)
        if self.order == "auto":
            return None
        check_sides(schedule, self.order)
        return schedule

    def _check_guided(self, argument: str) -> None:
        """Raise :class:`ConfigError` for what guides, which are given by ``argument``, do not go with."""
        if self.order in UNTRAINED_ORDERS:
            raise ConfigError(f"{argument} need order='inverted' or 'forward', got {self.order!r}")
        for name in ("latent_paddings", "target_index"):
            if getattr(self, name) is not None:
                raise ConfigError(f"{argument} and {name} exclude each other, got both")
        schedule = None if self.schedule is None else Schedule.parse(self.schedule)
        if schedule is not None and schedule.num_frames("start") != 1:
            raise ConfigError(
                f"{argument} need a schedule that begins with one frame, such as f1k1_x_g9_f1k1f2k2, got {schedule}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingConfig(SharedFields):
    """How one video is sampled, in latents.

    Attributes:
        num_sections: sections to generate; each adds ``latent_window_size`` latent frames.
        guide_places: sections (video order, from 0) from which on a guide of the conditioning takes the place of the
            start image, up to the next one. Not with latent_paddings, target_index or an untrained order.

    The other fields are those of :class:`SharedFields` and :class:`Experimental`.
    """

    num_sections: int
    guide_places: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        settle_values(self, "history_codebook")
        check_at_least("num_sections", self.num_sections, 1)
        if self.num_sections > MAX_SECTIONS:
            raise ConfigError(f"num_sections must be at most {MAX_SECTIONS}, got {self.num_sections}")
        self._check_shared()
        self._check_guides()
        if self.target_index is not None:
            self._check_target(self.target_index)
        if self.latent_paddings is not None:
            self._check_paddings(self.latent_paddings)

    def _check_guides(self) -> None:
        places = self.guide_places
        for place in places:
            check_at_least("guide_places", place, 1)
        if list(places) != sorted(set(places)) or max(places, default=0) >= self.num_sections:
            raise ConfigError(
                f"guide_places must increase and be below num_sections = {self.num_sections}, got {places}"
            )
        if places:
            self._check_guided("guide_places")

    def _check_target(self, target_index: int) -> None:
        check_at_least("target_index", target_index, 1)
        if self.schedule is not None:
            raise ConfigError(f"target_index needs schedule=None, got {self.schedule!r}")
        if (self.num_sections, self.latent_window_size, self.order) != (1, 1, "inverted"):
            raise ConfigError(
                "target_index needs num_sections=1, latent_window_size=1 and order='inverted', got "
                f"{self.num_sections}, {self.latent_window_size} and {self.order!r}"
            )

    def _check_paddings(self, paddings: tuple[int, ...]) -> None:
        for padding in paddings:
            check_at_least("latent_paddings", padding, 0)
        if self.order != "inverted":
            raise ConfigError(f"latent_paddings need order='inverted', got order={self.order!r}")
        if len(paddings) != self.num_sections:
            raise ConfigError(
                f"latent_paddings must have num_sections = {self.num_sections} entries, got {len(paddings)}"
            )
        if paddings[-1] != 0:
            raise ConfigError(f"latent_paddings must end with 0, got {paddings}")

    @property
    def untrained_schedule(self) -> Schedule | None:
        """The packing schedule; None for the published layout of the order."""
        return untrained_schedule(self.schedule, self.order, self.latent_window_size)
