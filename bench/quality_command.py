"""``isoframe bench quality``: the demo model against the truth of its world."""

from pathlib import Path
from typing import Annotated

import typer

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
_JsonFile = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
]


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
    json_file: _JsonFile = None,
) -> None:
    """Compare the demo model's videos with the formulas of its world; exit 1 where a target is missed.

    With --what errors, videos of approximate options are compared with those of the exact path.
    """
    from ..engine.commands.failures import readable_errors
    from ..engine.config import ORDERS, check_choice
    from .option_errors import OPTIONS
    from .quality_views import QualityView
    from .truth_view import TruthView

    with readable_errors(debug=False):
        check_choice("--what", what, ("truth", "drift", "errors"))
        for name in order or ():
            check_choice("--order", name, (*ORDERS, "endpoints", "planned") if what == "truth" else ORDERS)
        for name in option or ():
            check_choice("--option", name, OPTIONS)
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
