"""Names of LoRA layers: those of the checkpoint, the aliases of its family, and kohya's form with underscores for dots."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

# Prefixes that trainers put before a layer's name; several may be nested.
_PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.", "model.")
_KOHYA_PREFIX = "lora_unet_"
_BLOCK = "{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraAliases:
    """Other names that trainers give to the layers of a family.

    Attributes:
        layers: a name and the checkpoint's layers that are stacked in it along the output, "{}" being the block.
        swapped_halves: those of the names whose two halves of the output change places.
        comfyui: regular expressions and replacements that make ComfyUI's names of the names.
    """

    layers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    swapped_halves: Collection[str] = ()
    comfyui: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class LoraTarget:
    """What a layer of a LoRA file changes.

    Attributes:
        layers: the checkpoint's layers, stacked along the output.
        has_swapped_halves: whether the two halves of the output change places.
    """

    layers: tuple[str, ...]
    has_swapped_halves: bool = False


class LoraNames:
    """Every name that a LoRA file may give to a layer of one model."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], aliases: LoraAliases) -> None:
        """Names for the layers of ``shapes``, by checkpoint name without ``.weight``."""
        self._targets = {name: LoraTarget((name,)) for name in shapes}
        for theirs, ours in aliases.layers.items():
            for block in _blocks(ours[0], shapes):
                layers = tuple(name.replace(_BLOCK, block) for name in ours)
                target = LoraTarget(layers, theirs in aliases.swapped_halves)
                for name in (theirs, _replaced(theirs, aliases.comfyui)):
                    self._targets[name.replace(_BLOCK, block)] = target
        self._kohya = {name.replace(".", "_"): target for name, target in self._targets.items()}

    def find(self, name: str) -> LoraTarget | None:
        """The layers behind ``name``, as a file writes it; None if the model has no such layer."""
        if name.startswith(_KOHYA_PREFIX):
            return self._kohya.get(name.removeprefix(_KOHYA_PREFIX))
        return self._targets.get(without_prefix(name))


def without_prefix(name: str) -> str:
    """``name`` less what a trainer put before it."""
    while (prefix := next((p for p in _PREFIXES if name.startswith(p)), None)) is not None:
        name = name.removeprefix(prefix)
    return name


def _replaced(name: str, replacements: Sequence[tuple[str, str]]) -> str:
    for pattern, replacement in replacements:
        name = re.sub(pattern, replacement, name)
    return name


def _blocks(template: str, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Numbers of the blocks that have the layer ``template``; one empty number for a layer outside the blocks."""
    if _BLOCK not in template:
        return [""] if template in shapes else []
    pattern = re.compile(re.escape(template).replace(re.escape(_BLOCK), r"(\d+)"))
    return [match[1] for name in shapes if (match := pattern.fullmatch(name))]
