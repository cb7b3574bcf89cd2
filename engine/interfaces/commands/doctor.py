"""``isoframe doctor``: whether this machine is fit, and what would make it fitter."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from ...errors import EXIT_FAILED
from ...request.config import EngineConfig
from ...request.fields import setting
from .terminal.command import command
from .terminal.options import JSON
from .terminal.printing import PlainConsole, printable

if TYPE_CHECKING:
    from ..checkup import Check

_MARKS = {"good": ("good   ", "green"), "note": ("note   ", "yellow"), "problem": ("PROBLEM", "red")}


@command(config=("device", "cache_dir"))
def doctor(
    config: EngineConfig,
    as_json: bool = JSON,
    clean: bool = setting(
        False,
        "Remove what killed runs left half-written in the cache, in this folder and in that for temporary files; jobs, videos "
        "and what is being written stay.",
        panel=None,
    ),
) -> None:
    """Examine card, driver, Triton, attention, memory and disk; exit 1 where something will not work.

    Every finding comes with its remedy. Without a graphics card it says what this machine can do.
    """
    from ...device import resolve_device
    from ..checkup import examine, remove_leftovers

    if clean:
        for path in remove_leftovers(config.cache_path()):
            typer.echo(f"removed {path}")
        return
    checks = []
    console = PlainConsole(soft_wrap=True)
    for check in examine(resolve_device(config.device), config.cache_path()):
        checks.append(check)
        if not as_json:
            _print(console, check)
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        console.print(_sum_up(checks))
    if any(check.status == "problem" for check in checks):
        raise typer.Exit(EXIT_FAILED)


def _print(console: PlainConsole, check: "Check") -> None:
    console.print(Text.assemble(_MARKS[check.status], printable(f"  {check.name}: {check.text}")))
    if check.remedy:
        console.print(f"         {check.remedy}", style="dim")


def _sum_up(checks: "list[Check]") -> str:
    problems = [check.name for check in checks if check.status == "problem"]
    if problems:
        return f"{len(problems)} to be solved: {', '.join(problems)}"
    return "no problem found; isoframe demo makes a video, isoframe plan shows what a card would do"
