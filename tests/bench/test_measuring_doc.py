"""docs/measuring.md names every command of ``isoframe bench``, and no option that does not exist."""

import re
import shlex
from pathlib import Path

import typer

from isoframe.bench.commands import app

PAGE = (Path(__file__).resolve().parents[2] / "docs/measuring.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]  # a group


def test_every_command_is_in_the_table_or_has_a_page_of_its_own() -> None:
    table = set(re.findall(r"`([a-z]+)`", "".join(re.findall(r"^\| `.*$", PAGE, re.MULTILINE))))
    # Described in docs/kernels.md and docs/architecture.md.
    assert set(COMMANDS) - table == {"kernels", "magcache"}
    assert {"constant", "vram", "step", "gpu"} <= table


def test_recipes_have_options_that_exist() -> None:
    recipes = re.findall(r"^    isoframe bench (.*?)(?:\s+#.*)?$", PAGE, re.MULTILINE)
    assert len(recipes) >= 6
    for recipe in recipes:
        name, *arguments = shlex.split(recipe)
        known = {option for parameter in COMMANDS[name].params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= known, recipe
