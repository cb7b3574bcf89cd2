"""The options that commands share: type, name and help in one place; defaults are those of ``Request``."""

import os
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from ....errors import ConfigError
from ....request.config import (
    ATTENTIONS,
    ORDERS,
    PRECISIONS,
    PRESETS,
    SAMPLERS,
    STEP_CACHES,
    LoraStrength,
    Request,
    check_choice,
)
from ....request.guides import GuideImage

DEFAULTS = Request(image="", prompt="")
JOB, SAMPLING, OUTPUT, MACHINE = "Job", "Sampling", "Output", "Machine"

ImagePath = Annotated[
    str | None,
    typer.Argument(
        metavar="[IMAGE]",
        help="Image the video starts from; without one the video is made from text, which the published models were not "
        "trained for.",
        show_default=False,
    ),
]
EndImage = Annotated[
    str | None,
    Option(
        "--end-image", help="Image that would follow the last frame; inverted order.", rich_help_panel=JOB
    ),
]
GuideImages = Annotated[
    list[str] | None,
    Option(
        "--guide-image",
        metavar="TIMEs=FILE",
        help="Image that takes the place of IMAGE from a time on, such as 2.4s=later.png; times snap to sections; "
        "repeatable. No published model was trained with it.",
        rich_help_panel=JOB,
    ),
]
EndImageUse = Annotated[
    str,
    Option(
        "--end-image-use",
        help="first-section (the end of the video, which is made first, sees it) or history (all sections do).",
        rich_help_panel=JOB,
    ),
]
EndImageStrength = Annotated[float, Option("--end-image-strength", help="0 to 1.", rich_help_panel=JOB)]
Loop = Annotated[
    bool, Option("--loop", help="End where the image begins: repeats without a seam.", rich_help_panel=JOB)
]
Extend = Annotated[
    Path | None,
    Option(
        "--extend",
        metavar="VIDEO",
        help="Video to extend by --seconds; its frames stay as they are, and IMAGE may be left out.",
        rich_help_panel=JOB,
    ),
]
Direction = Annotated[
    str,
    Option(
        "--direction",
        help="forward continues --extend, backward makes what comes before it.",
        rich_help_panel=JOB,
    ),
]
HistoryCodebook = Annotated[
    Path | None,
    Option(
        "--history-codebook",
        metavar="FILE",
        help="Experimental: move the latent pixels of the history to the centroids that `isoframe codebook` fitted.",
        rich_help_panel=SAMPLING,
    ),
]
Schedule = Annotated[
    str | None,
    Option(
        "--schedule",
        metavar="NOTATION",
        help="Experimental: how the history is packed, such as f1k1_x_g9_f1k1f4k2f16k4_td (default: as the model was trained).",
        rich_help_panel=SAMPLING,
    ),
]
AllowUntrained = Annotated[
    bool,
    Option(
        "--allow-untrained",
        help="Accept an order, a schedule or a codebook that no published model was trained for.",
        rich_help_panel=JOB,
    ),
]
Paddings = Annotated[
    str | None,
    Option(
        "--paddings",
        metavar="N,N,...",
        help="Windows between the start image and each section in the order they are made, such as 3,2,1,0 (default: the "
        "published rule); inverted order.",
        rich_help_panel=SAMPLING,
    ),
]
Prompt = Annotated[
    str,
    Option(
        "--prompt",
        "-p",
        help='What happens in the video; with times, as in "A dog. [0s] It sits. [2.5s: 4s] It barks.", what happens '
        "when. Times snap to sections; text before the first one belongs to all.",
        rich_help_panel=JOB,
    ),
]
PromptBlend = Annotated[
    float,
    Option(
        "--prompt-blend",
        metavar="SECONDS",
        help="Blend the embeddings of prompts over so many seconds around a change.",
        rich_help_panel=JOB,
    ),
]
NegativePrompt = Annotated[
    str, Option("--negative-prompt", help="What to avoid; used when --cfg is not 1.", rich_help_panel=JOB)
]
Seconds = Annotated[
    float,
    Option(
        "--seconds",
        "-s",
        help="Length of the video, rounded to whole sections: 1.2 s each at 30 fps and window 9.",
        rich_help_panel=JOB,
    ),
]
Model = Annotated[
    str,
    Option(
        "--model",
        "-m",
        help="demo (built in), a Hub id, a folder, a .safetensors file or what `isoframe convert` wrote. Downloaded models keep their own "
        "licence: see NOTICE.",
        rich_help_panel=JOB,
    ),
]
Order = Annotated[
    str,
    Option(
        "--order",
        help=f"auto (forward for F1 models), {' or '.join(ORDERS)}. Inverted makes the end first. Experimental: endpoints, "
        "planned, or places such as 3,0,2,1 in the order they are made (from 0).",
        rich_help_panel=JOB,
    ),
]
Size = Annotated[
    str | None,
    Option(
        "--size",
        metavar="HxW",
        help="Height x width in pixels, multiples of 16 (default: the size nearest in shape that the model was trained "
        "on, 64x64 for demo); the image is scaled and cropped to it.",
        rich_help_panel=JOB,
    ),
]
BaseResolution = Annotated[
    int | None,
    Option(
        "--base-resolution",
        metavar="PIXELS",
        help="Scale the model's sizes so that the squarest has this side, 64 to 1280, such as 480 for a small card "
        "(published models: 640; others are outside of their training).",
        rich_help_panel=JOB,
    ),
]
Posterior = Annotated[
    str, Option("--posterior", help="Start latent: sample (seeded) or mode.", rich_help_panel=JOB)
]
Force = Annotated[
    bool,
    Option(
        "--force",
        "--force-size",
        help="Accept more than 3600 seconds and images of unusual size or shape.",
        rich_help_panel=JOB,
    ),
]
Preset = Annotated[
    str | None,
    Option(
        "--preset",
        help="draft (15 steps, magcache), balanced (25 steps, magcache) or final (25 steps, no cache); --steps and "
        "--step-cache go before it.",
        rich_help_panel=SAMPLING,
    ),
]
ReportError = Annotated[
    bool,
    Option(
        "--report-error",
        help="Afterwards make the first section with and without the step cache and print the difference.",
        rich_help_panel=SAMPLING,
    ),
]
Steps = Annotated[int, Option("--steps", help="Denoising steps per section.", rich_help_panel=SAMPLING)]
Seed = Annotated[int, Option("--seed", help="Seed of the noise.", rich_help_panel=SAMPLING)]
Guidance = Annotated[float, Option("--guidance", help="Distilled guidance.", rich_help_panel=SAMPLING)]
Cfg = Annotated[
    float,
    Option(
        "--cfg",
        help="True classifier-free guidance; 1 is off, else twice the time.",
        rich_help_panel=SAMPLING,
    ),
]
CfgRescale = Annotated[
    float, Option("--cfg-rescale", help="0 to 1; only with --cfg.", rich_help_panel=SAMPLING)
]
Sampler = Annotated[str, Option("--sampler", help=", ".join(SAMPLERS), rich_help_panel=SAMPLING)]
StepCache = Annotated[
    str,
    Option(
        "--step-cache",
        help=f"{', '.join(STEP_CACHES)}; the caches are faster, approximate.",
        rich_help_panel=SAMPLING,
    ),
]
StepCacheThreshold = Annotated[
    float, Option("--step-cache-threshold", help="Higher skips more steps.", rich_help_panel=SAMPLING)
]
StepCacheMaxSkips = Annotated[
    int,
    Option("--step-cache-max-skips", help="Steps that magcache skips in a row.", rich_help_panel=SAMPLING),
]
StepCacheRetention = Annotated[
    float,
    Option(
        "--step-cache-retention",
        help="Share of the first steps that magcache computes, 0 to 1.",
        rich_help_panel=SAMPLING,
    ),
]
Loras = Annotated[
    list[str] | None,
    Option(
        "--lora",
        metavar="FILE[:STRENGTH[@SECTIONS]]",
        help="A LoRA as .safetensors, such as style.safetensors:0.8; @1,3-5 limits it to these sections in the order "
        "they are made; repeatable.",
        rich_help_panel=SAMPLING,
    ),
]
Window = Annotated[
    int, Option("--window", help="Latent frames per section (4 frames each).", rich_help_panel=SAMPLING)
]
Out = Annotated[Path, Option("--out", "-o", help="The MP4 to write.", rich_help_panel=OUTPUT)]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace --out if it exists.", rich_help_panel=OUTPUT)]
Fps = Annotated[int, Option("--fps", help="Frames per second of the file.", rich_help_panel=OUTPUT)]
Crf = Annotated[int, Option("--crf", help="Quality: 0 lossless, 51 worst (av1: 63).", rich_help_panel=OUTPUT)]
Codec = Annotated[
    str,
    Option("--codec", help="h264 (plays everywhere), hevc or av1 (smaller files).", rich_help_panel=OUTPUT),
]
Preview = Annotated[
    Path | None, Option("--preview", help="Folder for small pictures of the run.", rich_help_panel=OUTPUT)
]
Png = Annotated[
    Path | None,
    Option("--png", help="Also write every frame as PNG into this folder.", rich_help_panel=OUTPUT),
]
FrameFilter = Annotated[
    str | None,
    Option(
        "--frame-filter",
        metavar="MODULE:FUNCTION",
        help="A function of yours that every frame passes through, uint8 [T, H, W, 3] and the place of the first in the "
        "video: to blur, to mark, or to stop with ContentError.",
        rich_help_panel=OUTPUT,
    ),
]
Latents = Annotated[
    Path | None,
    Option("--latents", help="Also write the latents of the video, .safetensors.", rich_help_panel=OUTPUT),
]
JobDir = Annotated[
    Path | None,
    Option(
        "--job",
        metavar="DIR",
        help="Folder that keeps every finished section, for `isoframe resume` and `isoframe redo` (default: a new one in "
        "the cache folder). A folder of the same job is continued.",
        rich_help_panel=OUTPUT,
    ),
]
NoJob = Annotated[
    bool,
    Option("--no-job", help="Keep no job folder: a job that is killed is lost.", rich_help_panel=OUTPUT),
]
JsonProgress = Annotated[
    bool,
    Option(
        "--json-progress",
        help="One JSON object per event on stdout, nothing else there; failure and Ctrl-C included.",
        rich_help_panel=OUTPUT,
    ),
]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Print errors only.", rich_help_panel=OUTPUT)]
Traces = Annotated[
    list[Path] | None,
    Option(
        "--trace",
        metavar="FILE",
        help="When weights were copied and used, and what compute waited for: .json for chrome://tracing, .svg or .png for "
        "a chart of the last two steps; repeatable.",
        rich_help_panel=OUTPUT,
    ),
]
Device = Annotated[str, Option("--device", help="auto, cpu, cuda or cuda:N.", rich_help_panel=MACHINE)]
Precision = Annotated[
    str | None,
    Option(
        "--precision",
        help=f"{', '.join(PRECISIONS)} (default: fp32 on the CPU, bf16 on CUDA).",
        rich_help_panel=MACHINE,
    ),
]
Attention = Annotated[
    str,
    Option(
        "--attention",
        help=f"{', '.join(ATTENTIONS)}; auto measures once which is fastest.",
        rich_help_panel=MACHINE,
    ),
]
Vram = Annotated[
    str | None,
    Option(
        "--vram",
        metavar="SIZE",
        help="Most memory on the graphics card, such as 6GiB (default: 90 % of what is free).",
        rich_help_panel=MACHINE,
    ),
]
Ram = Annotated[
    str | None,
    Option(
        "--ram",
        metavar="SIZE",
        help="Most memory that is added in RAM, such as 16GiB (default: 60 % of what is available).",
        rich_help_panel=MACHINE,
    ),
]
VaeTiles = Annotated[
    bool | None,
    Option(
        "--vae-tiles/--no-vae-tiles",
        help="Run the VAE in tiles: less memory, slightly different pixels (default: where the budget needs it).",
        show_default=False,
        rich_help_panel=MACHINE,
    ),
]
ComponentOverrides = Annotated[
    list[str] | None,
    Option(
        "--component",
        metavar="NAME=SOURCE",
        help="Other source of a companion model, such as vae=FOLDER; repeatable.",
        rich_help_panel=MACHINE,
    ),
]
CacheDir = Annotated[
    Path | None,
    Option(
        "--cache-dir",
        help="Folder of cached embeddings and converted models (default: $ISOFRAME_CACHE, else ~/.cache/isoframe or "
        "the platform's).",
        rich_help_panel=MACHINE,
    ),
]
LocalFilesOnly = Annotated[
    bool, Option("--local-files-only", help="Never ask the Hub.", rich_help_panel=MACHINE)
]
Debug = Annotated[bool, Option("--debug", help="Log everything; show tracebacks.", rich_help_panel=MACHINE)]


_OPTIONS_OF_A_PRESET = {"num_steps": "steps", "step_cache": "step_cache"}
# More than any job has: a day of video at window 9.
_MAX_SECTION = 72_000


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


def apply_preset(name: str | None, context: typer.Context, **given: object) -> dict[str, Any]:
    """The options that a preset sets, in the values of a request; what the user ``given`` stands.

    Args:
        name: of the preset; None is none.
        context: knows which options were given.
        given: values by the names of the request, each under the name of its option in ``_OPTIONS_OF_A_PRESET``.
    """
    if name is None:
        return given
    check_choice("--preset", name, PRESETS)
    chosen = {
        field: value
        for field, value in PRESETS[name].items()
        if not _is_given(context, _OPTIONS_OF_A_PRESET[field])
    }
    return given | chosen


def _is_given(context: typer.Context, parameter: str) -> bool:
    source = context.get_parameter_source(parameter)
    # By its name: typer has a click of its own.
    return source is not None and source.name == "COMMANDLINE"


def parse_order(text: str) -> dict[str, Any]:
    """The order, and its sections where ``text`` is a list such as ``"3,0,2,1"``."""
    if not text[:1].isdecimal():
        return {"order": text}
    return {"order": "custom", "section_order": _numbers("--order", text)}


def parse_paddings(text: str | None) -> tuple[int, ...] | None:
    """Paddings from ``"3,2,1,0"``."""
    return None if text is None else _numbers("--paddings", text)


def _numbers(option: str, text: str) -> tuple[int, ...]:
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
            sections=None if sections is None else _sections(sections),
        )
    except ValueError as error:
        raise ConfigError(
            f"--lora must be FILE:STRENGTH or FILE:STRENGTH@SECTIONS such as style.safetensors:0.8@1,3-5, got {text!r}"
        ) from error


def _sections(text: str) -> tuple[int, ...]:
    """Sections from 0 out of ``"1,3-5"``, which counts from 1."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if int(last or first) > _MAX_SECTION:
            raise ValueError(text)
        found += range(int(first) - 1, int(last or first))
    if not found:
        raise ValueError(text)
    return tuple(found)


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
