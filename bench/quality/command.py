"""``isoframe bench`` quality and magcache: the demo model against the truth of its world, and a step cache's ratios.

``isoframe codebook``, a command of its own: centroids for history discretisation.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ...engine.request.config import ORDERS, check_choice
from ..records.command_options import JsonFile, check_choices, command, options

if TYPE_CHECKING:
    from ...engine import Engine
    from .magnitude_ratios import MagnitudeResult


_What = Annotated[
    str,
    typer.Option(
        "--what",
        help="truth (videos against the formulas), drift (from the beginning to the end of a video) or errors (of "
        "approximate options).",
    ),
]
_Order = Annotated[
    list[str] | None,
    typer.Option(
        "--order",
        help="inverted or forward (default both); endpoints and planned with --what truth; repeatable.",
    ),
]
_Pairs = Annotated[int, typer.Option("--pairs", min=1, help="Held-out (image, prompt) pairs.")]
_Seconds = Annotated[float, typer.Option("--seconds", help="Length of each video.")]
_Steps = Annotated[int, typer.Option("--steps", min=1, help="Denoising steps.")]
_Option = Annotated[
    list[str] | None,
    typer.Option("--option", help="With errors: only this option; with truth: this one too; repeatable."),
]
_Model = Annotated[str, typer.Option("--model", "-m", help="With errors: whose options.")]
_Baselines = Annotated[
    bool, typer.Option(help="Also measure the start image standing still, and the VAE alone.")
]
_Sheet = Annotated[
    Path | None, typer.Option("--sheet", help="Folder for contact sheets, truth above results.")
]
_Codebook = Annotated[
    Path | None,
    typer.Option("--history-codebook", help="With truth: centroids that the history is moved to."),
]
_Schedule = Annotated[
    str | None,
    typer.Option("--schedule", metavar="NOTATION", help="With truth: packing schedule of the history."),
]


@command()
def quality(
    what: _What = "truth",
    order: _Order = None,
    pairs: _Pairs = 32,
    seconds: _Seconds = 5.0,
    steps: _Steps = 25,
    option: _Option = None,
    model: _Model = "demo",
    baselines: _Baselines = True,
    history_codebook: _Codebook = None,
    schedule: _Schedule = None,
    sheet: _Sheet = None,
    json_file: JsonFile = None,
) -> None:
    """Compare the demo model's videos with the formulas of its world; exit 1 where a target is missed.

    With --what errors, videos of approximate options are compared with those of the exact path.
    """
    from .option_errors import OPTIONS
    from .printed_results import QualityView, TruthView

    check_choice("--what", what, ("truth", "drift", "errors"))
    check_choices("--order", order, (*ORDERS, "endpoints", "planned") if what == "truth" else ORDERS)
    check_choices("--option", option, list(OPTIONS))
    view = QualityView(pairs=pairs, steps=steps, sheet=sheet, json_file=json_file)
    if what == "drift":
        view.show_drift(seconds)
    elif what == "errors":
        first_order, sections = (order or ["forward"])[0], max(round(seconds / 1.2), 1)
        view.show_errors(model=model, options=option or (), order=first_order, sections=sections)
    else:
        truth = TruthView(view, seconds, history_codebook, schedule)
        if not truth.show(order or ORDERS, option or (), baselines):
            raise typer.Exit(1)


@command()
def magcache(
    model: options.Model = "demo",
    order: Annotated[
        list[str] | None, typer.Option("--order", help="inverted or forward; repeatable, default both.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="Start image (default: the built-in examples).")
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What happens to --image.")] = "",
    seconds: Annotated[float, typer.Option("--seconds", "-s", help="Length of each video.")] = 2.4,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Denoising steps.")] = 25,
    device: options.Device = "auto",
    precision: options.Precision = None,
    cache_dir: Annotated[
        Path | None, typer.Option("--cache-dir", help="Where the ratios go (default: $ISOFRAME_CACHE).")
    ] = None,
) -> None:
    """Measure a checkpoint's magnitude ratios and keep them in the cache folder."""
    from ...engine import Engine, EngineConfig, Request
    from ...engine.demo import EXAMPLES, find_example
    from .magnitude_ratios import MagnitudeProbe, measure_magnitudes, recording

    check_choices("--order", order, ORDERS)
    pairs = [find_example(path.stem) for path in sorted(EXAMPLES.glob("*.png"))]
    if image is not None:
        pairs = [(image, prompt)]
    probes: list[MagnitudeProbe] = []
    config = EngineConfig(device=device, precision=precision, cache_dir=cache_dir)
    engine = Engine.load(model, config=config, step_caches=recording(probes))
    for name in order or ORDERS:
        result = measure_magnitudes(
            engine,
            probes,
            [
                Request(image=str(path), prompt=text, seconds=seconds, order=name, num_steps=steps)
                for path, text in pairs
            ],
        )
        _keep(engine, result, model=model, num_videos=len(pairs))


def _keep(engine: "Engine", result: "MagnitudeResult", *, model: str, num_videos: int) -> None:
    """Write the ratios to the cache folder, and show them with the schedule they give."""
    from ...engine import SamplingConfig
    from ...engine.sampling.magnitude import measured_path, skip_schedule, write_measured
    from ..records.environment import read_environment

    num_steps = len(result.ratios)
    environment = read_environment()
    source = (
        f"isoframe bench magcache, {num_steps} steps, {num_videos} videos, {result.num_sections} sections, "
        f"{environment.gpu or environment.cpu}, torch {environment.torch}"
    )
    path = measured_path(engine.config.cache_path(), engine.model_hash, result.order)
    write_measured(path, result.ratios, model=model, source=source)
    schedule = skip_schedule(result.ratios, SamplingConfig(num_sections=1, num_steps=num_steps))
    typer.echo(f"{result.order}: {' '.join(f'{ratio:.5f}' for ratio in result.ratios)}")
    typer.echo(
        f"  {result.num_sections} sections, at most {result.spread:.4f} from the mean after the first fifth"
    )
    typer.echo(f"  {''.join('s' if is_skipped else 'C' for is_skipped in schedule)}  (C computed, s skipped)")
    typer.echo(f"  {path}")


@command()
def codebook(
    files: Annotated[
        list[Path], typer.Argument(metavar="LATENTS...", help="Files that `generate --latents` wrote.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The codebook to write, .safetensors.")],
    centroids: Annotated[
        int, typer.Option("--centroids", min=1, help="How many; fewer keep less of the history.")
    ] = 128,
    seed: Annotated[int, typer.Option("--seed", help="Of the first centroids.")] = 0,
    overwrite: options.Overwrite = False,
) -> None:
    """Fit K centroids of latent pixels, for generate --history-codebook (experimental)."""
    from ...engine.files import write_error
    from ...engine.output_paths import check_apart, check_latents_path
    from ...engine.sampling.codebook import Codebook
    from .codebook_fit import fit_codebook, read_points, save_codebook

    check_latents_path(out, overwrite=overwrite)
    check_apart([out], files)
    points = read_points(files)
    fitted = fit_codebook(points, centroids, seed=seed)
    try:
        save_codebook(out, fitted, [path.name for path in files], overwrite=overwrite)
    except OSError as error:
        raise write_error(error, out) from error
    spread = (points - points.mean(dim=0)).square().sum()
    error_share = (Codebook.load(out).nearest(points) - points).square().sum() / spread
    typer.echo(
        f"{out}: {centroids} centroids of {len(points)} latent pixels, {error_share:.1%} of the variance lost"
    )
