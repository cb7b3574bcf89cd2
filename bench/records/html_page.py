"""A page of results that needs nothing but itself: HTML with SVG inside."""

import importlib.util
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...engine.errors import ConfigError
from .rows import Basis, BenchRow
from .trend import Status

_TEMPLATE = Path(__file__).resolve().parents[1] / "data" / "report.html"
_LIBRARIES = ("jinja2", "matplotlib")
_MIB = 2**20
_HEADINGS: Mapping[Basis, str] = {
    "measured": "Measured with",
    "predicted": "Predicted, on",
    "emulated": "Measured with a card that was held back",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineResult:
    """What one machine did, in every unit that people use.

    Attributes:
        hardware: GPU, or CPU without one.
        model: name of the checkpoint.
        precision: of the model.
        settings: the rest, in words.
        step: seconds of a denoising step; so are frame and section of their kinds.
        host_peak: MiB.
        device_peak: MiB; None on the CPU.
        basis: "measured", "predicted" or "emulated".
        is_green: whether the correctness gate was.
    """

    hardware: str
    model: str
    precision: str
    settings: str
    step: float
    frame: float
    section: float
    host_peak: float
    device_peak: float | None
    basis: str
    is_green: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Figures under a caption; the first column is text.

    Attributes:
        caption: above it.
        header: names of the columns.
        rows: cells as text.
        note: a line under the caption.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def check_report_libraries() -> None:
    """Raise :class:`ConfigError` with the pip line where what draws the page is missing."""
    missing = [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"a report needs {' and '.join(missing)}: pip install {' '.join(missing)}, or the extra isoframe[bench]"
        )


def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    status: Status,
    verdict: str,
    rows: Sequence[BenchRow],
    findings: Sequence[object] = (),
    figures: Sequence[tuple[str, str]] = (),
    tables: Sequence[Table] = (),
    cards: Sequence[MachineResult] = (),
) -> None:
    """Fill ``data/report.html`` and write it; its folder is created.

    Args:
        path: the HTML file.
        title: of the page.
        status: colours the verdict.
        verdict: in a sentence.
        rows: of the measurement; hardware, versions and settings are those of the last.
        findings: claims with what became of them.
        figures: captions and SVG.
        tables: figures as text.
        cards: what machines did.
    """
    check_report_libraries()
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        title=title,
        status=status,
        verdict=verdict,
        findings=findings,
        # The plots are ours; everything else on the page is escaped.
        figures=[(caption, Markup(svg)) for caption, svg in figures],
        tables=tables,
        cards=cards,
        heading=_HEADINGS[rows[-1].basis],
        environment=describe_environment(rows),
        settings=sorted(rows[-1].settings.items()),
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def machine_results(rows: Iterable[BenchRow]) -> list[MachineResult]:
    """A card for every machine, model and setting among the rows of ``bench constant``: its longest video."""
    groups: dict[tuple[object, ...], dict[str, BenchRow]] = {}
    for row in rows:
        if row.case.startswith("constant-") and row.variant.endswith(" s"):
            by_name = groups.setdefault(_machine(row), {})
            known = by_name.get(row.case)
            if known is None or _length(row) >= _length(known):
                by_name[row.case] = row
    return [_machine_result(group) for group in groups.values() if "constant-denoise" in group]


def _machine_result(rows: Mapping[str, BenchRow]) -> MachineResult:
    section, denoise = rows["constant-section"], rows["constant-denoise"]
    settings = section.settings
    steps, window = _number(settings, "steps"), _number(settings, "window")
    device_peak = rows.get("constant-device-peak")
    others = (
        f"{name} {settings[name]}" for name in ("size", "order", "steps", "attention") if name in settings
    )
    return MachineResult(
        hardware=section.environment.gpu or section.environment.cpu,
        model=str(settings.get("model", "")),
        precision=section.precision,
        settings=", ".join([*others, section.variant]),
        step=denoise.median / steps,
        frame=section.median / (4 * window),
        section=section.median,
        host_peak=max(rows["constant-host-peak"].values) / _MIB,
        device_peak=None if device_peak is None else max(device_peak.values) / _MIB,
        basis=section.basis,
        is_green=section.gate.is_green,
    )


def _machine(row: BenchRow) -> tuple[object, ...]:
    environment = row.environment
    hardware = environment.gpu or environment.cpu
    return hardware, environment.commit, row.precision, tuple(sorted(row.settings.items()))


def _length(row: BenchRow) -> float:
    return float(row.variant.removesuffix(" s"))


def _number(settings: Mapping[str, object], name: str) -> float:
    value = settings.get(name)
    if not isinstance(value, int | float):
        raise ConfigError(f"a card needs the setting {name!r} of its rows, got {value!r}; measure again")
    return value


def describe_environment(rows: Sequence[BenchRow]) -> list[tuple[str, str]]:
    """Hardware and versions of the last row, by name."""
    environment = rows[-1].environment
    gpu = "none" if environment.gpu is None else f"{environment.gpu}, driver {environment.driver}"
    return [
        ("GPU", gpu),
        (
            "CPU",
            f"{environment.cpu}, {environment.num_cores} cores, {environment.num_threads} threads a product",
        ),
        ("memory", f"{environment.ram_bytes / 2**30:.1f} GiB"),
        ("system", f"{environment.os}, Python {environment.python}"),
        ("torch", environment.torch),
        ("triton", environment.triton or "none"),
        ("commit", environment.commit or f"isoframe {environment.isoframe}"),
        ("command", rows[-1].command),
        ("date", rows[-1].date),
    ]
