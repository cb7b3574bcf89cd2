"""The options that commands share, made of the fields of a request where it has them, and what their text means."""

import dataclasses
import os
import re
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from ....errors import ConfigError
from ....request.config import EngineConfig, LoraStrength, Request
from ....request.fields import JOB, MACHINE, OUTPUT, Offered, offer, offered, setting
from ....request.guides import GuideImage
from ....request.sampling_config import parse_sections

ASKED = offered(Request, "command")
CONFIG = offered(EngineConfig, "command")

MODEL: str = setting(
    "demo",
    "demo (built in), a Hub id (owner/name), a folder, a .safetensors file or what `isoframe convert` "
    "wrote. Downloaded models keep their own licence: see NOTICE.",
    option="--model -m", panel=JOB,
)  # fmt: skip
REVISION: str | None = setting(
    None,
    "Commit, tag or branch of the model's repository on the Hub (default: a pinned one, else main).",
    panel=JOB,
)
OVERWRITE: bool = setting(False, "Replace --out if it exists.", option="--overwrite", panel=OUTPUT)
NO_JOB: bool = setting(
    False, "Keep no job folder: a job that is killed is lost.", option="--no-job", panel=OUTPUT
)
COMPONENT: list[str] | None = setting(
    None,
    "Other source of a companion model, such as vae=FOLDER; repeatable.",
    metavar="NAME=SOURCE",
    panel=MACHINE,
)
FRAME_FILTER: str | None = setting(
    None,
    "A function of yours that every frame passes through, uint8 [T, H, W, 3] and the place of the first in the video: to "
    "blur, to mark, or to stop with ContentError.",
    metavar="MODULE:FUNCTION", panel=OUTPUT,
)  # fmt: skip
QUIET: bool = setting(False, "Print errors only.", option="--quiet -q", panel=OUTPUT)
DEBUG: bool = setting(False, "Log everything; show tracebacks.", panel=MACHINE)
JSON: bool = setting(False, "Print JSON.", option="--json", panel=None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OutputOptions:
    """What a command writes beside its video, and what it says meanwhile; each an option.

    Attributes:
        overwrite: whether the MP4 may exist.
        preview: folder for pictures of the run.
        png: folder for every frame as PNG.
        latents: file for the latents.
        frame_filter: "module:function" that every frame passes through.
        trace: files for the timeline of the weights.
        json_progress: progress as JSON on stdout.
        quiet: no progress.
    """

    overwrite: bool = OVERWRITE
    preview: Path | None = setting(None, "Folder for small pictures of the run.", panel=OUTPUT)
    png: Path | None = setting(None, "Also write every frame as PNG into this folder.", panel=OUTPUT)
    latents: Path | None = setting(None, "Also write the latents of the video, .safetensors.", panel=OUTPUT)
    frame_filter: str | None = FRAME_FILTER
    trace: list[Path] | None = setting(
        None,
        "When weights were copied and used, and what compute waited for: .json for chrome://tracing, .svg or .png for a "
        "chart of the last two steps; repeatable.",
        metavar="FILE", panel=OUTPUT,
    )  # fmt: skip
    json_progress: bool = setting(
        False,
        "One JSON object per event on stdout, nothing else there; failure and Ctrl-C included.",
        panel=OUTPUT,
    )
    quiet: bool = QUIET


def option(known: Offered) -> Any:
    """What typer is told of a parameter: an option, or an argument where its name is in capitals."""
    about, is_required = (
        known.setting,
        known.default is dataclasses.MISSING and not isinstance(known.type, str),
    )
    if known.name.isupper():
        shown = known.name if is_required else f"[{known.name}]"
        return typer.Argument(metavar=about.metavar or shown, help=known.help, show_default=False)
    return typer.Option(
        *known.name.split(), metavar=about.metavar, help=known.help, rich_help_panel=about.panel,
        show_default=known.default not in (None, dataclasses.MISSING),
    )  # fmt: skip


# As annotations, for commands that other packages add.
Model = Annotated[str, option(offer("model", str, cast(Any, MODEL), "command"))]
Overwrite = Annotated[bool, option(offer("overwrite", bool, cast(Any, OVERWRITE), "command"))]
NoJob = Annotated[bool, option(offer("no_job", bool, cast(Any, NO_JOB), "command"))]
Size = Annotated[str | None, option(ASKED["size"])]
Order = Annotated[str, option(ASKED["order"])]
Steps = Annotated[int, option(ASKED["num_steps"])]
Window = Annotated[int, option(ASKED["latent_window_size"])]
Device = Annotated[str, option(CONFIG["device"])]
Precision = Annotated[str | None, option(CONFIG["precision"])]
Attention = Annotated[str, option(CONFIG["attention"])]
Vram = Annotated[str | None, option(CONFIG["vram"])]
Ram = Annotated[str | None, option(CONFIG["ram"])]


def parse_size(text: str | None) -> tuple[int, int] | None:
    """(height, width) from ``"640x608"``."""
    if text is None:
        return None
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(side.strip().isdecimal() for side in sides):
        raise ConfigError(f"--size must be HEIGHTxWIDTH such as 640x608, got {text!r}")
    height, width = (int(side) for side in sides)
    nearest = [max(round(pixels / 16), 1) * 16 for pixels in (height, width)]
    if nearest != [height, width]:
        raise ConfigError(
            f"--size must be HEIGHTxWIDTH in multiples of 16, got {text}; the nearest is {nearest[0]}x{nearest[1]}"
        )
    return height, width


def parse_order(text: str) -> dict[str, Any]:
    """The order, and its sections where ``text`` is a list such as ``"3,0,2,1"``."""
    if not text[:1].isdecimal():
        return {"order": text}
    return {"order": "custom", "section_order": parse_numbers("--order", text)}


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Whole numbers from ``"3,2,1,0"``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"{option} must be whole numbers such as 3,2,1,0, got {text!r}")
    return tuple(int(part) for part in parts)


def parse_loras(texts: list[str] | None) -> tuple[LoraStrength, ...]:
    """LoRAs from ``["style.safetensors:0.8", "face.safetensors:1@1,3-5"]``."""
    loras = tuple(_parse_lora(text) for text in texts or ())
    for lora in loras:
        # Before the model is read, which may take minutes.
        if not Path(lora.source).expanduser().exists():
            raise ConfigError(f"--lora must be FILE:STRENGTH: {os.fspath(lora.source)} does not exist")
    return loras


def _parse_lora(text: str) -> LoraStrength:
    # A colon may also be part of the path, as in C:\.
    match = re.fullmatch(r"(.+):([-+.\deE]+)(?:@([\d,-]+))?", text)
    if match is None:
        return LoraStrength(source=text)
    source, strength, sections = match.groups()
    try:
        return LoraStrength(
            source=source,
            strength=float(strength),
            sections=None if sections is None else parse_sections(sections),
        )
    except ValueError as error:
        raise ConfigError(
            f"--lora must be FILE:STRENGTH or FILE:STRENGTH@SECTIONS such as style.safetensors:0.8@1,3-5, got {text!r}"
        ) from error


def parse_guides(texts: list[str] | None) -> tuple[GuideImage, ...]:
    """Guide images in the order of their times from ``["4.8s=b.png", "2.4s=a.png"]``."""
    return tuple(sorted(map(_parse_guide, texts or ()), key=lambda guide: guide.time))


def _parse_guide(text: str) -> GuideImage:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*s?\s*=(.+)", text)
    if match is None:
        raise ConfigError(f"--guide-image must be TIMEs=FILE such as 2.4s=later.png, got {text!r}")
    return GuideImage(image=match[2], time=float(match[1]))


def parse_components(pairs: list[str] | None) -> dict[str, str]:
    """Sources by component name from ``["vae=FOLDER", ...]``."""
    components: dict[str, str] = {}
    for pair in pairs or []:
        name, _, source = pair.partition("=")
        if not name or not source:
            raise ConfigError(f"--component must be NAME=SOURCE such as vae=FOLDER, got {pair!r}")
        if name in components:
            raise ConfigError(f"--component names {name} twice")
        components[name] = source
    return components
