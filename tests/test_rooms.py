"""The rooms point one way, none knows itself in a circle, and the documentation shows them as they are."""

import re

import grimp
import pytest
from rooms import (
    BASE,
    LEVELS,
    PAGE,
    ROOT,
    circle,
    description,
    files_of,
    import_graph,
    page_with,
    room_of,
    rooms_page,
)
from rooms import upward_imports as upwards

ROOMS = [room for rooms in LEVELS for room in rooms]
# `commands` has a file for every sub-command.
MOST_FILES = {"engine.interfaces.commands": 16}


@pytest.fixture
def graph() -> grimp.ImportGraph:
    return import_graph()


def test_every_room_has_a_level(graph: grimp.ImportGraph) -> None:
    assert {room_of(module) for module in graph.modules} == set(ROOMS)


def test_rooms_point_one_way(graph: grimp.ImportGraph) -> None:
    assert upwards(graph) == []


def test_no_modules_import_each_other_in_a_circle(graph: grimp.ImportGraph) -> None:
    assert circle(graph) == []


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("isoframe.engine.request.config", "isoframe.engine.sampling.denoiser"),
        ("isoframe.engine.errors", "isoframe.engine.engine"),
        ("isoframe.engine.media.video", "isoframe.engine.sampling.sampler"),
        ("isoframe.engine.engine", "isoframe.bench.commands"),
        ("isoframe.kernels.launching.launch", "isoframe.kernels.linear.quantize"),
    ],
)
def test_an_import_into_a_room_that_is_not_below_is_caught(
    graph: grimp.ImportGraph, importer: str, imported: str
) -> None:
    graph.add_import(importer=importer, imported=imported)
    assert upwards(graph) == [f"{importer} -> {imported}"]


def test_a_circle_inside_one_room_is_caught(graph: grimp.ImportGraph) -> None:
    importer, imported = "isoframe.engine.request.sizes", "isoframe.engine.request.config"
    assert graph.direct_import_exists(importer=imported, imported=importer)
    graph.add_import(importer=importer, imported=imported)
    assert {importer, imported} <= set(circle(graph))


@pytest.mark.parametrize("room", [room for room in ROOMS if room != BASE])
def test_a_room_says_what_it_is_for_in_few_lines_and_holds_few_files(room: str) -> None:
    assert 1 <= len(description(room).splitlines()) <= 6
    assert len(files_of(room)) <= MOST_FILES.get(room, 13)


def test_the_documentation_shows_the_rooms_as_they_are() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page_with(rooms_page()) == text, "run: python tests/oracles/rooms.py"


def test_a_page_that_lacks_a_room_is_caught() -> None:
    shown = rooms_page()
    line = next(line for line in shown.splitlines() if line.startswith("| engine/sampling |"))
    assert page_with(shown.replace(line + "\n", "")) != PAGE.read_text(encoding="utf-8")


def missing_paths(text: str) -> list[str]:
    """Files and modules of the project that ``text`` names and that are not there."""
    files = re.findall(r"(?<![\w/.-])(?:bench|engine|examples|kernels|quant|tests)/[\w/]+\.\w+", text)
    modules = re.findall(r"\bisoframe(?!\.json)((?:\.\w+)+)", text)
    missing = [name for name in files if not (ROOT / name).exists()]
    return missing + [f"isoframe{name}" for name in modules if not has_module(name[1:].split("."))]


def has_module(parts: list[str]) -> bool:
    """Whether the longest part of a dotted name that may be a module is one: its last word may be a name inside."""
    folders = [ROOT.joinpath(*parts[:length]) for length in (len(parts), len(parts) - 1) if length]
    return any(path.is_dir() or path.with_suffix(".py").is_file() for path in folders)


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]
)
def test_what_a_page_names_is_there(page: str) -> None:
    assert missing_paths((ROOT / page).read_text(encoding="utf-8")) == []


def test_names_that_are_not_there_are_caught() -> None:
    text = "`engine/sampling/denoiser.py` `engine/denoiser.py` isoframe.engine.Engine isoframe.engine.packing.PATCH isoframe.kernels"
    assert missing_paths(text) == ["engine/denoiser.py", "isoframe.engine.packing.PATCH"]
