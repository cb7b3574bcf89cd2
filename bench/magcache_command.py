"""``isoframe bench magcache``: the magnitude ratios that ``--step-cache magcache`` needs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..engine import Engine
    from .magcache import MagnitudeResult


def magcache(
    model: Annotated[
        str, typer.Option("--model", "-m", help="demo, a Hub id, a folder or a .safetensors file.")
    ] = "demo",
    order: Annotated[
        list[str] | None, typer.Option("--order", help="inverted or forward; repeatable, default both.")
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="Start image (default: the built-in examples).")
    ] = None,
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="What happens to --image.")] = "",
    seconds: Annotated[float, typer.Option("--seconds", "-s", help="Length of each video.")] = 2.4,
    steps: Annotated[int, typer.Option("--steps", min=2, help="Denoising steps.")] = 25,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str | None, typer.Option("--precision", help="As in generate.")] = None,
    cache_dir: Annotated[
        Path | None, typer.Option("--cache-dir", help="Where the ratios go (default: $ISOFRAME_CACHE).")
    ] = None,
) -> None:
    """Measure a checkpoint's magnitude ratios and keep them in the cache folder."""
    from ..engine import Engine, EngineConfig, Request
    from ..engine.commands.failures import readable_errors
    from ..engine.config import ORDERS, check_choice
    from ..engine.demo.examples_folder import EXAMPLES, find_example
    from .magcache import measure_magnitudes

    with readable_errors(debug=False):
        for name in order or ():
            check_choice("--order", name, ORDERS)
        pairs = [find_example(path.stem) for path in sorted(EXAMPLES.glob("*.png"))]
        if image is not None:
            pairs = [(image, prompt)]
        engine = Engine.load(
            model, config=EngineConfig(device=device, precision=precision, cache_dir=cache_dir)
        )
        for name in order or ORDERS:
            result = measure_magnitudes(
                engine,
                [
                    Request(image=str(path), prompt=text, seconds=seconds, order=name, num_steps=steps)
                    for path, text in pairs
                ],
            )
            _keep(engine, result, model=model, num_videos=len(pairs))


def _keep(engine: "Engine", result: "MagnitudeResult", *, model: str, num_videos: int) -> None:
    """Write the ratios to the cache folder, and show them with the schedule they give."""
    from ..engine import SamplingConfig
    from ..engine.magnitude import measured_path, skip_schedule, write_measured
    from .environment import read_environment

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
