"""The rooms of the house, their order from low to high, and the part of docs/architecture.md that shows them.

`python tests/oracles/rooms.py` writes that part again.
"""

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "architecture.md"
_BEGIN, _END = "<!-- rooms: begin -->\n", "<!-- rooms: end -->\n"

# The files of engine/ itself lie at both ends: what everybody needs, and the engine that puts the parts together.
BASE = "engine (base)"
_BASE_FILES = ("device", "errors", "events", "files", "output_paths")
_BASE_PURPOSE = (
    "Errors, events, the device, files that are written whole or not at all, and where outputs go."
)

# A room imports from the levels above it in this list; rooms of one level do not know each other.
LEVELS: tuple[tuple[str, ...], ...] = (
    ("kernels.launching",),
    ("kernels.linear", "kernels.packing"),
    ("kernels.attention", "kernels.norms"),
    ("kernels",),
    ("quant",),
    (BASE,),
    ("engine.request", "engine.checkpoints"),
    ("engine.model", "engine.demo"),
    ("engine.families",),
    ("engine.families.framepack",),
    ("engine.planning",),
    ("engine.weights",),
    ("engine.companions",),
    ("engine.media", "engine.sampling"),
    ("engine.jobs",),
    ("engine.generation",),
    ("engine",),
    ("engine.interfaces",),
    ("engine.interfaces.server.videos", "engine.interfaces.diffusers", "engine.interfaces.comfyui"),
    ("engine.interfaces.server.http",),
    ("engine.interfaces.server",),
    ("engine.interfaces.app",),
    ("engine.interfaces.commands.terminal",),
    ("engine.interfaces.commands",),
    ("bench.subjects",),
    ("bench.meters",),
    ("bench.records",),
    ("bench.peers",),
    ("bench.operations",),
    ("bench.constant", "bench.pace", "bench.quality"),
    ("bench.budgets",),
    ("bench.gpu",),
    ("bench",),
)
_LEVEL_OF = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}


def import_graph() -> grimp.ImportGraph:
    """Every import between the project's modules, those inside functions and for type checkers included."""
    packages = ("isoframe.kernels", "isoframe.quant", "isoframe.engine", "isoframe.bench")
    return grimp.build_graph(*packages, cache_dir=None)


def room_of(module: str) -> str:
    """The innermost folder of ``module``."""
    path = module.removeprefix("isoframe.")
    is_folder = (ROOT / path.replace(".", "/")).is_dir()
    room, _, name = (path, "", "") if is_folder else path.rpartition(".")
    return BASE if room == "engine" and name in _BASE_FILES else room


def arrows(graph: grimp.ImportGraph) -> dict[tuple[str, str], list[str]]:
    """The imports from one room into another, as ``importer -> imported`` each."""
    found: dict[tuple[str, str], list[str]] = {}
    for importer in sorted(graph.modules):
        for imported in sorted(graph.find_modules_directly_imported_by(importer)):
            ends = room_of(importer), room_of(imported)
            if ends[0] != ends[1]:
                found.setdefault(ends, []).append(f"{importer} -> {imported}")
    return found


def upward_imports(graph: grimp.ImportGraph) -> list[str]:
    """Imports from a room into one that is not below it."""
    return [
        line
        for (start, end), lines in arrows(graph).items()
        if _LEVEL_OF[end] >= _LEVEL_OF[start]
        for line in lines
    ]


def circle(graph: grimp.ImportGraph) -> list[str]:
    """Modules that import each other in a circle, the first one found; empty where there is none."""
    order = TopologicalSorter(
        {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    )
    try:
        order.prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def rooms_page() -> str:
    """The picture and the table of docs/architecture.md."""
    return "".join([_BEGIN, *_picture(), "\n", *_table(arrows(import_graph())), _END])


def _picture() -> Iterator[str]:
    yield "```\n"
    for rooms in reversed(LEVELS):
        yield "   ".join(room.replace(".", "/") for room in rooms) + "\n"
    yield "```\n"


def _table(found: dict[tuple[str, str], list[str]]) -> Iterator[str]:
    yield "| room | files | what it is for | imports |\n|---|---|---|---|\n"
    for rooms in reversed(LEVELS):
        for room in rooms:
            imports = sorted((end for start, end in found if start == room), key=lambda end: -_LEVEL_OF[end])
            files = " ".join(f"`{name}`" for name in files_of(room))
            shown = ", ".join(end.removeprefix("engine.") for end in imports)
            yield f"| {room.replace('.', '/')} | {files} | {purpose(room)} | {shown} |\n"


def files_of(room: str) -> list[str]:
    """Names of the modules of ``room`` without their suffix."""
    folder = ROOT / room.split(" ")[0].replace(".", "/")
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("__"))
    is_engine = room.split(" ")[0] == "engine"
    return [name for name in names if not is_engine or (name in _BASE_FILES) == (room == BASE)]


def description(room: str) -> str:
    """The docstring of the room's ``__init__.py``."""
    import ast

    path = ROOT / room.replace(".", "/") / "__init__.py"
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def purpose(room: str) -> str:
    """The first paragraph of the room's description on one line."""
    text = _BASE_PURPOSE if room == BASE else description(room).split("\n\n")[0]
    return " ".join(text.split()).replace("|", "\\|")


def page_with(rooms: str) -> str:
    """docs/architecture.md with ``rooms`` in place of its own part."""
    text = PAGE.read_text(encoding="utf-8")
    head, rest = text.split(_BEGIN)
    return head + rooms + rest.split(_END)[1]


if __name__ == "__main__":
    PAGE.write_text(page_with(rooms_page()), encoding="utf-8")
