"""What belongs to one family of models is named in its room alone."""

import re
from collections.abc import Iterator
from pathlib import Path

import grimp
from rooms import import_graph

import isoframe.engine

ENGINE = Path(isoframe.engine.__file__).parent
FAMILIES = ENGINE / "families"
# Layers, units and token counts of FramePack's transformer, and the classes that diffusers has for its parts.
NAMES = re.compile(
    r"\b(?:"
    r"num_layers|num_single_layers|num_refiner_layers|num_dual_blocks|"
    r"(?:single_)?transformer_blocks|(?:clean_)?x_embedder|context_embedder|"
    r"(?:Dual|Single)Block|(?:dual|single)_blocks|double_blocks|"
    r"NUM_CLEAN_\w+|patch_size(?:_t)?|PATCH_\dX|"
    r"13B|framepack-13b|"
    r"(?:AutoencoderKL)?HunyuanVideo\w*(?:Model|Packed|Pipeline)|AutoencoderKLHunyuanVideo"
    r")\b"
)
# What may name them all the same: file in engine/ -> the reason.
ALLOWED = {
    "interfaces/diffusers/drop_in.py": "stands in for this very class of diffusers",
    "interfaces/diffusers/pipelines.py": "drives this very pipeline of diffusers",
}

# What may import FramePack's modules all the same: a file or a room, and why.
IMPORTERS = {
    "engine.interfaces.diffusers.drop_in": "stands in for this very class of diffusers",
    "engine.interfaces.diffusers.module_checkpoint": "reads the configuration of this very class of diffusers",
    "bench.subjects": "draws models of this architecture",
    "bench.peers.peer_step": "compares this very transformer with the one of diffusers",
    "bench.meters.section_counts": "counts what this very transformer packs",
    "bench.pace.slow_reasons": "watches the steps of this very transformer",
    "bench.pace.step_bench": "predicts the step of a model drawn in this architecture",
    "bench.budgets.planner_answers": "holds what this very transformer computes once against the plan",
    "bench.budgets.ram_cases": "makes models of this architecture",
}


def importers(graph: grimp.ImportGraph) -> set[str]:
    """Modules outside the families that import one of FramePack's, local imports included."""
    family = "isoframe.engine.families.framepack"
    inner = graph.find_descendants(family) | {family}
    found = set[str]().union(*map(graph.find_modules_that_directly_import, inner))
    names = {name.removeprefix("isoframe.") for name in found}
    return {name for name in names if not name.startswith("engine.families")}


def named_in(text: str) -> list[str]:
    """Every line of ``text`` that names something of the family, with its number."""
    lines = enumerate(text.splitlines(), 1)
    return [f"{number}: {line.strip()}" for number, line in lines if NAMES.search(line)]


def outside() -> Iterator[tuple[str, str]]:
    """Name and text of every module of the engine outside the families."""
    for path in sorted(ENGINE.rglob("*.py")):
        if FAMILIES not in path.parents:
            yield path.relative_to(ENGINE).as_posix(), path.read_text(encoding="utf-8")


def test_no_other_room_names_what_a_family_is_made_of() -> None:
    found = {name: lines for name, text in outside() if (lines := named_in(text)) and name not in ALLOWED}
    assert not found


def test_every_exception_is_still_needed() -> None:
    texts = dict(outside())
    assert [name for name in ALLOWED if not named_in(texts.get(name, ""))] == []


def test_a_planted_name_is_found() -> None:
    planted = (
        "for block in range(config.num_layers):\n"
        "name = f'single_transformer_blocks.{block}.attn'\n"
        "far = latents[:, :, NUM_CLEAN_4X:]\n"
        "from diffusers import AutoencoderKLHunyuanVideo, HunyuanVideoTransformer3DModelPacked\n"
        "the 13B model\n"
        "num_layers_of_ours = config.depth\n"
    )
    assert [line.partition(":")[0] for line in named_in(planted)] == ["1", "2", "3", "4", "5"]


def test_the_families_are_chosen_in_one_place() -> None:
    """Only the registry lists them, and nothing asks which one a model is of."""
    is_choice = re.compile(
        r"isinstance\([^)]*\b(?:FramePack|TransformerConfig)\b|\bfamily\.name\b|\bFAMILY\b"
    )
    choices = {name for name, text in outside() if is_choice.search(text)}
    assert not choices


def test_no_other_room_imports_what_belongs_to_one_family() -> None:
    found = {
        name: next((part for part in IMPORTERS if f"{name}.".startswith(f"{part}.")), None)
        for name in importers(import_graph())
    }
    assert [name for name, exception in found.items() if exception is None] == []
    assert set(found.values()) == set(IMPORTERS), "every exception is still needed"


def test_a_planted_import_is_found() -> None:
    graph = import_graph()
    planted = "isoframe.engine.sampling.denoiser"
    before = importers(graph)
    graph.add_import(importer=planted, imported="isoframe.engine.families.framepack.layers")
    assert importers(graph) - before == {"engine.sampling.denoiser"}
