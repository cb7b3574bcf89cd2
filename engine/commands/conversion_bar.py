"""How far a conversion is, in bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from ..conversion import ConversionProgress, OnProgress

_PHASES = {"convert": "converting the model, once", "verify": "reading it back"}


@contextmanager
def conversion_bar(*, is_quiet: bool) -> "Iterator[OnProgress]":
    """A bar on a terminal, from the first report on; nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TimeRemainingColumn())
    console = Console(stderr=True, quiet=is_quiet)
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    tasks = {phase: bar.add_task(name, total=None, visible=False) for phase, name in _PHASES.items()}

    def on_progress(progress: "ConversionProgress") -> None:
        bar.start()
        task = tasks[progress.phase]
        bar.update(task, completed=progress.done_bytes, total=progress.total_bytes, visible=True)

    try:
        yield on_progress
    finally:
        bar.stop()
