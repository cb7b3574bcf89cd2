"""The loss curve of the demo's two trainings."""

import json
from collections.abc import Mapping
from pathlib import Path


def read_losses(path: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, mean loss) pairs of every loss in a training log."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in path.read_text().splitlines():
        record = json.loads(line)
        step = record.pop("step")
        record.pop("seconds")
        for name, value in record.items():
            curves.setdefault(name, []).append((step, value))
    return curves


def draw_loss_curves(logs: Mapping[str, Path], path: Path) -> None:
    """Draw one panel for each log, named by its key, into the image ``path``."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(logs), figsize=(5.5 * len(logs), 3.6), squeeze=False)
    for axis, (title, log) in zip(axes[0], logs.items(), strict=True):
        for name, points in read_losses(log).items():
            axis.plot(*zip(*points, strict=True), label=name, linewidth=1)
        axis.set(title=title, xlabel="step", ylabel="loss", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
