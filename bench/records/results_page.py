"""The committed results as Markdown: docs/benchmarks.md, and of them what docs/precision.md says of every precision.

Every figure comes with its interval, its machine and how it came about.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from ...engine.families.registry import PUBLISHED_NAME, family_of, find_published
from ...engine.model.units import UnitLayout
from ...engine.request.sizes import format_size
from ...quant import PRECISIONS, make_format
from .environment import Environment
from .rows import BenchRow
from .trend import mean_interval

_HEAD = """# Benchmarks

Generated from `bench/results/*.jsonl` by `isoframe bench results --docs docs/benchmarks.md`; a test compares the two.
Every row holds hardware, driver, torch, Triton, commit, precision, unit and the correctness check that came before it
(`bench/data/row.json` is the schema). The load is the number of programs that wanted a core when the measurement ended: one
much above the threads that are named means a machine that others used too. How a figure came about:

| basis | meaning |
|---|---|
| measured | on the machine that is named |
| predicted | by the planner's model of the hardware (`isoframe plan`, `isoframe bench step`: what a card should do); nothing ran |
| emulated | measured on other hardware that was held back, such as a memory cap on a larger card: neither its bandwidth nor its PCIe link |
"""
_MIB = 2**20
Rows = Sequence[BenchRow]


def render(rows: Rows) -> str:
    """The whole page; of rows behind a red check only the names."""
    parts = [_HEAD, *_basis_notes(rows)]
    green = [row for row in rows if row.gate.is_green]
    for title, prefix, section in _SECTIONS:
        found = [row for row in green if row.case.startswith(prefix)]
        if found:
            parts += [f"## {title}\n", *section(found), "\n".join(machines(found)) + "\n"]
    known = tuple(prefix for _, prefix, _ in _SECTIONS)
    others = [row for row in green if not row.case.startswith(known)]
    if others:
        parts += ["## Other figures\n", *_others(others), "\n".join(machines(others)) + "\n"]
    return "\n".join([*parts, *_without_figures(rows)])


def _without_figures(rows: Rows) -> Iterator[str]:
    """What was measured behind a red correctness check: figures of wrong results would be believed."""
    red = {f"* {row.case}, {row.variant}: {row.gate.text}": None for row in rows if not row.gate.is_green}
    if red:
        yield "## No figures: a correctness check is red\n"
        yield "\n".join(red) + "\n"


def _basis_notes(rows: Rows) -> Iterator[str]:
    counts = {
        basis: sum(row.basis == basis for row in rows) for basis in ("measured", "predicted", "emulated")
    }
    yield "Here: " + ", ".join(f"{count} rows {basis}" for basis, count in counts.items()) + "."
    if not any(row.environment.gpu for row in rows):
        yield "Nothing here was measured on a GPU.\n"
    else:
        yield ""


def machines(rows: Rows) -> Iterator[str]:
    """Where and by what the rows were made, each once; the load is that of the first and of the last."""
    groups = _group(
        rows, lambda row: (row.command, replace(row.environment, load=None), row.date[:10], row.basis)
    )
    for group in groups.values():
        first = group[0]
        loads = sorted({row.environment.load for row in group if row.environment.load is not None})
        load = "unknown" if not loads else f"{loads[0]:.1f}"
        if len(loads) > 1:
            load += f" to {loads[-1]:.1f}"
        yield f"* `{first.command}`: {_machine(first.environment, load)}, {first.date[:10]}, {first.basis}"


def _machine(environment: Environment, load: str) -> str:
    hardware = environment.gpu or environment.cpu
    if environment.driver:
        hardware += f" (driver {environment.driver})"
    versions = f"torch {environment.torch}, Triton {environment.triton or 'none'}"
    threads = f"{environment.num_threads} of {environment.num_cores} cores"
    return (
        f"{hardware}, {threads}, load {load}, {versions}, commit {environment.commit or environment.isoframe}"
    )


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column is text, the others are figures."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *lines)) + "\n"


def _constant(rows: Rows) -> Iterator[str]:
    yield (
        "One job at several lengths. Growth is what the last section costs more than the first; its whole 95 % interval "
        "must lie within 5 %. What `--report` draws of it: [a page](img/bench_constant.png).\n"
    )
    if rows[0].settings.get("clock") == "cpu":
        yield "Seconds are the process' own time on the CPU, for other programs ran too.\n"
    if rows[0].settings.get("clock") == "reference":
        yield (
            "Growth is that of the wall time against the time of unchanging work that is done after every step: this "
            "machine's own speed changes by more than 5 %.\n"
        )
    yield f"Verdict: {'; '.join(dict.fromkeys(row.gate.text for row in rows))}.\n"
    by_variant = _group(rows, lambda row: row.variant)
    lines = []
    for found in by_variant.values():
        by_case = {row.case.removeprefix("constant-"): row for row in found}
        if "section" not in by_case:
            continue
        growth = ""
        if "growth" in by_case:
            growth = (
                f"{by_case['growth'].median:+.1%} ({by_case['growth-low'].median:+.1%} to "
                f"{by_case['growth-high'].median:+.1%})"
            )
        device = f"{max(by_case['device-peak'].values) / _MIB:.0f}" if "device-peak" in by_case else "none"
        lines.append(
            [
                found[0].variant,
                str(len(by_case["section"].values)),
                f"{by_case['section'].median:.3f}",
                f"{max(by_case['host-peak'].values) / _MIB:.1f}",
                device,
                growth,
                f"{by_case['measuring'].median:.2%}",
            ]
        )
    header = (
        "video",
        "sections",
        "s/section",
        "host peak MiB",
        "device peak MiB",
        "growth",
        "cost of measuring",
    )
    yield _table(header, lines)
    counts = {row.case.removeprefix("constant-count-"): row for row in rows if "-count-" in row.case}
    figures = [f"{name.replace('-', ' ')} {row.values[0]:.0f}" for name, row in counts.items()]
    if figures:
        is_equal = all(len(set(row.values)) == 1 for row in counts.values())
        yield f"Counters of section 6 and later, {'all equal' if is_equal else 'NOT EQUAL'}: {', '.join(figures)}.\n"


def _pace(rows: Rows) -> Iterator[str]:
    yield (
        "Denoising alone, without VAE and file. Roofline: of the best rate of the card's tensor cores. Of the card: of what "
        "the planner expects of it. H2D: weights copied to the device for a step; waits: what of a step is waiting for them. "
        "Error: relative RMS of the latents to the first line. A step of a small model agreed with its reference, or nothing "
        "would have been timed. What `--report` draws of it: [a page](img/bench_step.png).\n"
    )
    groups = _group(rows, lambda row: (row.variant, row.precision, *sorted(row.settings.items())))
    header = (
        "model", "precision", "attention", "step cache", "s/it", "s/frame", "s/section", "TFLOP/s", "roofline", "of the card",
        "H2D GB/it", "waits s/it", "error",
    )  # fmt: skip
    yield _table(header, [_pace_line(group) for group in groups.values()])


def _pace_line(group: Rows) -> list[str]:
    by_case = {row.case.removeprefix("pace-"): row for row in group}
    settings, first = group[0].settings, group[0]

    def figure(name: str, form: str, scale: float = 1.0) -> str:
        return format(by_case[name].median / scale, form) if name in by_case else "unknown"

    return [
        f"{first.variant} ({settings['weights']}), {settings['size']}, {settings['steps']} steps",
        first.precision,
        str(settings.get("attention_used", settings["attention"])),
        str(settings["step_cache"]),
        *(figure(name, ".4g") for name in ("step", "frame", "section", "flops")),
        figure("share-of-roofline", ".0%"),
        figure("share-of-card", ".0%"),
        figure("copied", ".3g", 1e9),
        figure("wait", ".3g"),
        figure("error", ".1e"),
    ]


def _vram(rows: Rows) -> Iterator[str]:
    yield (
        "The least budget with which a video finishes, and the largest size and window that fit into a budget, by bisection. "
        "Measured: every point in a fresh process; on the CPU the budget is one in RAM, and the peak is the resident set of the "
        "process, its libraries included. Predicted: by the planner, and the tensors by a step on tensors without memory. The "
        "curve's largest and smallest budgets are shown; a page with the whole one and a time line: "
        "`isoframe bench vram --report`, here [of a card that is predicted](img/bench_vram.png).\n"
    )
    groups = _group(
        rows,
        lambda row: (
            row.settings["card"],
            row.settings["model"],
            row.precision,
            row.settings["size"],
            row.basis,
        ),
    )
    header = (
        "card", "basis", "model", "precision", "least budget", "largest size", "largest window", "s/it: budget", "largest tensors",
    )  # fmt: skip
    yield _table(header, [_vram_line(group) for group in groups.values()])


def _vram_line(group: Rows) -> list[str]:
    by_case = {row.case.removeprefix("vram-"): row for row in group if not row.case.startswith("vram-curve")}
    first = group[0]
    steps = [row for row in group if row.case == "vram-curve-step"]
    owners = [row for row in group if row.case == "vram-owner-denoise"][:2]
    least, size, window = (by_case.get(name) for name in ("least-budget", "largest-size", "largest-window"))
    return [
        str(first.settings["card"]),
        first.basis,
        f"{first.settings['model']}, {first.settings['size']}, window {first.settings['window']}",
        first.precision,
        "none" if least is None else format_size(int(least.median)),
        "none" if size is None else f"{size.shape[0]}x{size.shape[1]} in {size.variant}",
        "none" if window is None else f"{window.median:.0f} in {window.variant}",
        ", ".join(f"{row.median:.3g}: {row.variant}" for row in (*steps[:1], *steps[1:][-1:])),
        "; ".join(
            f"{row.median / _MIB:.0f} MiB {row.variant.partition(', ')[2].partition(': ')[2]}"
            for row in owners
        ),
    ]


def _predictions(rows: Rows) -> Iterator[str]:
    first = rows[0].settings
    yield (
        f"What the planner expects of the published model at {first['size']}, {first['steps']} steps, with 90 % of a card's "
        f"memory and {float(first['ram'] or 0) / 2**30:.0f} GiB of RAM for the weights. Nothing of this was run.\n"
    )
    lines = []
    for group in _group(rows, lambda row: (row.variant, row.precision)).values():
        by_case = {row.case.removeprefix("predicted-"): row for row in group}
        settings = group[0].settings
        peak = f"{by_case['device-peak'].median / 2**30:.1f}"
        lines.append(
            [
                group[0].variant,
                group[0].precision,
                f"{by_case['step'].median:.2f}",
                f"{by_case['frame'].median:.2f}",
                peak,
                f"{settings['residents']} of 80",
                str(settings["bottleneck"]),
            ]
        )
    header = ("card", "precision", "s/it", "s/frame", "peak GiB", "units that stay", "limited by")
    yield _table(header, lines)


def _errors(rows: Rows) -> Iterator[str]:
    yield error_table(rows)


def error_table(rows: Rows) -> str:
    """Errors of options, one line for each order, number of videos and number of sections."""
    lines = []
    ordered = sorted(
        rows, key=lambda row: (-float(row.settings["pairs"] or 0), str(row.settings["order"]), row.variant)
    )
    for group in _group(
        ordered, lambda row: (row.variant, row.settings["order"], row.settings["pairs"], row.shape)
    ).values():
        by_metric = {row.case.removeprefix("option-error-"): row for row in group}
        first = group[0]
        figures = [_mean(by_metric[name], digits) for name, digits in (("sqnr", 1), ("psnr", 1), ("ssim", 4))]
        computed = f"{float(first.settings['computed'] or 0):.0%}"
        videos = f"{first.settings['pairs']} {first.settings['order']}"
        lines.append([first.variant, videos, str(first.shape[0]), computed, *figures])
    header = ("option", "videos", "sections", "steps computed", "latent SQNR dB", "PSNR dB", "SSIM")
    return (
        "The demo model's videos with an option beside those without, held-out images and prompts, same seeds: mean "
        "and 95 % interval. 200 dB means identical. In inverted order the first section is the end of the video. The attention of "
        "libraries (flash-attn, xformers, sageattention) needs CUDA.\n\n"
    ) + _table(header, lines)


def _drift(rows: Rows) -> Iterator[str]:
    yield (
        "How much further from the truth the last 15 % of a video's frames are than the first 15 %, on the demo model: "
        "mean and 95 % interval. Sharpness and change from frame to frame are relative to the truth's; colour is the "
        "distance of histograms (0 to 1); shape is 1 - IoU; position is in widths of the picture; flow is the part of the "
        "change from frame to frame that no motion explains (frames moved back along a Lucas-Kanade flow), relative to the "
        "truth's change.\n"
    )
    measures = list(dict.fromkeys(row.case for row in rows))
    lines: list[list[str]] = []
    for name, group in _group(rows, lambda row: row.variant).items():
        by_case = {row.case: row for row in group}
        lines.append([str(name), *[_mean(by_case[measure], 3) for measure in measures]])
    yield _table(("way", *(measure.removeprefix("drift-") for measure in measures)), lines)


def _ratios(rows: Rows) -> Iterator[str]:
    yield "The same weights and inputs, one of each in turn; both results agree, or nothing would have been timed.\n"
    lines = []
    for group in _group(rows, lambda row: (row.case, row.precision, row.shape)).values():
        by_variant = {row.variant: row for row in group}
        theirs, ours = by_variant["diffusers"], by_variant["isoframe"]
        lines.append(
            [
                ours.case,
                ours.precision,
                f"{theirs.median:.4g} {theirs.unit}",
                f"{ours.median:.4g} {ours.unit}",
                f"{by_variant['isoframe/diffusers'].median:.3f}",
                f"{_spread(ours, theirs)}",
            ]
        )
    yield _table(("case", "precision", "diffusers", "isoframe", "ratio", "ratio of pairs"), lines)


def _videos(rows: Rows) -> Iterator[str]:
    settings = rows[0].settings
    yield (
        f"From prompt and image to frames in memory, encoders included: {settings['seconds']} s of video, "
        f"{settings['steps']} steps, {settings['order']}, Euler, the demo model.\n"
    )
    yield from _ratios(rows)


def _others(rows: Rows) -> Iterator[str]:
    lines = [[row.case, row.variant, row.precision, f"{row.median:.4g} {row.unit}"] for row in rows]
    yield _table(("case", "variant", "precision", "median"), lines)


def _spread(ours: BenchRow, theirs: BenchRow) -> str:
    """Tenth to ninetieth part of the ratios of neighbours."""
    ratios = sorted(a / b for a, b in zip(ours.values, theirs.values, strict=True))
    tenth = len(ratios) // 10
    return f"{ratios[tenth]:.3f} to {ratios[-1 - tenth]:.3f}"


def _mean(row: BenchRow, digits: int) -> str:
    mean, low, high = mean_interval(row.values)
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def _group(rows: Rows, key: Callable[[BenchRow], object]) -> dict[object, list[BenchRow]]:
    """Rows by key, in the order of the first of each."""
    groups: defaultdict[object, list[BenchRow]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


_SECTIONS: tuple[tuple[str, str, Callable[[Rows], Iterator[str]]], ...] = (
    ("Constant cost", "constant-", _constant),
    ("Pace", "pace-", _pace),
    ("Memory ceilings", "vram-", _vram),
    ("Pace that is predicted", "predicted-", _predictions),
    ("Beside diffusers: a video", "peers-video", _videos),
    ("Beside diffusers: a section", "peers-section", _ratios),
    ("Beside diffusers: a step", "forward-", _ratios),
    ("What approximate options change", "option-error-", _errors),
    ("Drift", "drift-", _drift),
)


_PRECISION_HEAD = """# Precisions

Generated from `bench/results/*.jsonl` by `isoframe bench results --page precision --docs docs/precision.md`; a test compares the
two.

`--precision` says how the linear layers inside the blocks are stored and multiplied. Patch embeddings, refiner, modulation,
projections and norms always stay in bf16 or fp32; norms, RoPE and modulation compute in fp32.

"""
_WAYS = {
    "fp32": ("fp32", "exact: the reference on the CPU"),
    "bf16": ("bf16", "rounding: as the published program"),
    "fp16": ("fp16 products, fp32 residual stream and norms", "rounding; weights are checked for its range"),
    "int8": ("int8 x int8 with one scale per token and per output row, int32 sums", "approximate"),
    "int8-weight": ("expanded to the activations' dtype once a block", "approximate, mild"),
    "fp8": ("e4m3 x e4m3 where the card has it, else expanded", "approximate"),
    "nf4": ("expanded from 4-bit codes, one scale for 64 weights", "approximate"),
}
_ERRORS = """
## Measured on the demo model

Beside fp32 on the CPU, where activations are fp32 for every format but bf16 and fp16: so each line is the error of its format
alone. In bf16 and fp16 the timesteps are rounded to bf16 too, as published, and that is most of their distance.

"""


def render_precision(rows: Rows) -> str:
    """docs/precision.md: what is measured of every precision, as Markdown."""
    found = [row for row in rows if row.case.startswith("option-error-") and row.variant in PRECISIONS]
    return "".join(
        [_PRECISION_HEAD, _formats(), _ERRORS, error_table(found), "\n", "\n".join(machines(found)), "\n"]
    )


def _formats() -> str:
    """One line a format; the size of a unit of the published model is that of its blob."""
    lines = ["| precision | a unit of the 13B model | multiplied | class |", "|---|---:|---|---|"]
    published = find_published(PUBLISHED_NAME)
    assert published is not None, "it is built in"
    spec = family_of(published.shapes.transformer).unit_specs()[0]
    for name in PRECISIONS:
        size = UnitLayout(spec, make_format(name, torch.bfloat16)).num_bytes / 2**20
        way, exactness = _WAYS[name]
        lines.append(f"| {name} | {size:.1f} MiB | {way} | {exactness} |")
    return "\n".join(lines) + "\n"
