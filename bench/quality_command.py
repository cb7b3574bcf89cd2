"""``isoframe bench quality``: the demo model against the truth of its world."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from .quality import QualityRow

_HEADER = f"{'':10}{'videos':>7}{'frames':>7}{'on path':>9}{'centre px':>10}{'hue deg':>9}{'IoU':>7}{'area':>7}{'PSNR':>7}"


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
    typer.Option("--option", help="With errors: only this option; repeatable."),
]
_Model = Annotated[str, typer.Option("--model", "-m", help="With errors: whose options.")]
_Baselines = Annotated[
    bool, typer.Option(help="Also measure the start image standing still, and the VAE alone.")
]
_Sheet = Annotated[
    Path | None, typer.Option("--sheet", help="Folder for contact sheets, truth above result.")
]
_Codebook = Annotated[
    Path | None,
    typer.Option("--history-codebook", help="With truth: centroids that the history is moved to."),
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
    sheet: _Sheet = None,
    json_file: _JsonFile = None,
) -> None:
    """Compare the demo model's videos with the formulas of its world; exit 1 where a target is missed.

    With --what errors, videos of approximate options are compared with those of the exact path.
    """
    from ..engine.commands.failures import readable_errors
    from ..engine.config import ORDERS, check_choice
    from ..engine.engine import Engine
    from .contact_sheet import save_contact_sheet
    from .quality import measure_baselines, measure_quality

    with readable_errors(debug=False):
        check_choice("--what", what, ("truth", "drift", "errors"))
        for name in order or ():
            check_choice("--order", name, (*ORDERS, "endpoints", "planned") if what == "truth" else ORDERS)
        if what != "truth":
            from .quality_views import QualityView

            view = QualityView(pairs=pairs, steps=steps, sheet=sheet, json_file=json_file)
            if what == "drift":
                view.show_drift(seconds)
            else:
                first_order, sections = (order or ["forward"])[0], max(round(seconds / 1.2), 1)
                view.show_errors(model=model, options=option or (), order=first_order, sections=sections)
            return
        engine = Engine.load("demo")
        typer.echo(_HEADER)
        rows = []
        for name in order or ORDERS:
            rows.append(
                measure_quality(
                    engine,
                    num_pairs=pairs,
                    seconds=seconds,
                    order=name,
                    num_steps=steps,
                    history_codebook=history_codebook,
                )
            )
            typer.echo(_line(rows[-1]))
            if sheet is not None:
                save_contact_sheet(engine, sheet / f"demo_{name}.png", order=name, seconds=seconds)
        if baselines:
            rows += measure_baselines(num_pairs=pairs, num_frames=rows[0].num_frames)
            for baseline in rows[-2:]:
                typer.echo(_line(baseline))
        if json_file is not None:
            _append(json_file, rows)
    if not all(row.is_reached for row in rows if row.num_steps):
        raise typer.Exit(1)


def _line(row: "QualityRow") -> str:
    verdict = "" if not row.num_steps else "  reached" if row.is_reached else "  MISSED"
    return (
        f"{row.order:10}{row.num_pairs:7d}{row.num_frames:7d}{row.share_on_path:9.1%}{row.center_error:10.2f}"
        f"{row.hue_error:9.1f}{row.aligned_iou:7.3f}{row.area_ratio:7.2f}{row.psnr:7.1f}{verdict}"
    )


def _append(path: Path, rows: "list[QualityRow]") -> None:
    from .rows import BenchRow, Gate, append_rows

    units = {
        "share_on_path": "ratio",
        "center_error": "px",
        "hue_error": "degrees",
        "aligned_iou": "ratio",
        "area_ratio": "ratio",
        "psnr": "dB",
    }
    append_rows(
        path,
        [
            BenchRow(
                case=f"quality-{name}",
                variant=row.order,
                shape=(row.num_pairs, row.num_frames, row.num_steps),
                dtype="float32",
                unit=unit,
                values=(getattr(row, name),),
                gate=Gate(is_green=row.is_reached, text="quality targets of the demo model"),
            )
            for row in rows
            for name, unit in units.items()
        ],
    )
