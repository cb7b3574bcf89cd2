"""As much of ComfyUI as a custom node meets: loading, files, progress, previews, interruption, the two schemas."""

import asyncio
import importlib.util
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class InterruptProcessingError(Exception):
    """What a cancelled prompt raises."""


@dataclass
class FakeComfy:
    """The state that the modules share, and what nodes did with it.

    Attributes:
        files: paths by kind and name.
        bars: moves of each progress bar: (steps done, total, preview).
        interrupt_after: progress at which the user cancels.
        calls: of the model management.
    """

    files: dict[str, dict[str, Path]] = field(default_factory=dict)
    bars: list[list[tuple[int, int, Any]]] = field(default_factory=list)
    interrupt_after: int | None = None
    calls: list[str] = field(default_factory=list)
    has_previews: bool = True

    def modules(self, *, has_v3: bool) -> dict[str, ModuleType | None]:
        fake = self

        class ProgressBar:
            def __init__(self, total: int) -> None:
                self.total = total
                self.moves: list[tuple[int, int, Any]] = []
                fake.bars.append(self.moves)

            def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
                self.moves.append((value, self.total if total is None else total, preview))

        def check() -> None:
            if fake.interrupt_after is not None and len(fake.bars[-1]) >= fake.interrupt_after:
                raise InterruptProcessingError

        class Previewer:
            def decode_latent_to_preview_image(self, kind: str, x0: Tensor) -> tuple[str, Any, int]:
                return kind, tuple(x0.shape), 512

        management = module(
            "comfy.model_management",
            throw_exception_if_processing_interrupted=check,
            unload_all_models=lambda: fake.calls.append("unload"),
            soft_empty_cache=lambda: fake.calls.append("empty"),
        )
        return {
            "comfy": module("comfy"),
            "comfy.utils": module("comfy.utils", ProgressBar=ProgressBar),
            "comfy.model_management": management,
            "comfy.latent_formats": module("comfy.latent_formats", HunyuanVideo=SimpleNamespace),
            "latent_preview": module(
                "latent_preview", get_previewer=lambda _, __: Previewer() if fake.has_previews else None
            ),
            "folder_paths": module(
                "folder_paths",
                get_filename_list=lambda kind: list(fake.files.get(kind, {})),
                get_full_path_or_raise=lambda kind, name: str(fake.files[kind][name]),
            ),
            "comfy_api": module("comfy_api") if has_v3 else None,
            "comfy_api.latest": (
                module("comfy_api.latest", io=v3_io(), ComfyExtension=ComfyExtension) if has_v3 else None
            ),
        }

    @contextmanager
    def installed(self, *, has_v3: bool) -> Iterator["FakeComfy"]:
        """Let imports find it; whatever was imported meanwhile from the nodes' folder is forgotten again."""
        before = dict(sys.modules)
        fakes = self.modules(has_v3=has_v3)
        sys.modules.update(fakes)  # type: ignore[arg-type]  # None forbids an import
        try:
            yield self
        finally:
            for name in sys.modules.keys() - before.keys():
                if name in fakes or "comfyui" in name:
                    del sys.modules[name]
            sys.modules.update({name: before[name] for name in fakes if name in before})


class ComfyExtension:
    async def on_load(self) -> None:
        """Nothing by default."""


def module(name: str, **values: Any) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(values)
    return made


def v3_io() -> SimpleNamespace:
    """The parts of comfy_api.latest.io that nodes use, with its rules."""

    def comfy_type(kind: str, allowed: set[str]) -> SimpleNamespace:
        def make_input(
            name: str, optional: bool = False, tooltip: str | None = None, **values: Any
        ) -> SimpleNamespace:
            assert values.keys() <= allowed, f"{kind} has no {values.keys() - allowed}"
            return SimpleNamespace(id=name, kind=kind, optional=optional, tooltip=tooltip, values=values)

        def make_output(id: str | None = None, display_name: str | None = None) -> SimpleNamespace:
            return SimpleNamespace(id=id, kind=kind, display_name=display_name)

        return SimpleNamespace(Input=make_input, Output=make_output)

    number = {"default", "min", "max", "step"}
    types = {
        "Int": comfy_type("INT", number),
        "Float": comfy_type("FLOAT", number),
        "String": comfy_type("STRING", {"default", "multiline"}),
        "Combo": comfy_type("COMBO", {"default", "options"}),
        "Image": comfy_type("IMAGE", set()),
        "Latent": comfy_type("LATENT", set()),
        "Conditioning": comfy_type("CONDITIONING", set()),
        "ClipVisionOutput": comfy_type("CLIP_VISION_OUTPUT", set()),
    }

    class ComfyNode:
        @classmethod
        def INPUT_TYPES(cls) -> dict[str, dict[str, Any]]:  # noqa: N802
            """What the real class derives for the classic interface."""
            schema = cls.define_schema()
            ids = [entry.id for entry in (*schema.inputs, *schema.outputs)]
            assert len(set(ids)) == len(ids), ids
            found: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
            for entry in schema.inputs:
                found["optional" if entry.optional else "required"][entry.id] = (entry.kind, entry.values)
            return found

    return SimpleNamespace(
        ComfyNode=ComfyNode,
        Schema=lambda **values: SimpleNamespace(**values),
        NodeOutput=lambda *values: SimpleNamespace(result=values),
        Custom=lambda kind: comfy_type(kind, set()),
        **types,
    )


def load_custom_node(folder: Path) -> dict[str, Any]:
    """The node classes of ``folder``, loaded under the name and in the way that ComfyUI does."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    classes: dict[str, Any] = loaded.NODE_CLASS_MAPPINGS
    assert classes.keys() == loaded.NODE_DISPLAY_NAME_MAPPINGS.keys()
    if sys.modules.get("comfy_api.latest") is not None:
        extension = asyncio.run(loaded.comfy_entrypoint())
        assert isinstance(extension, ComfyExtension)
        nodes = asyncio.run(extension.get_node_list())
        assert [node.define_schema().node_id for node in nodes] == list(classes)
    return classes


def execute(node: Any, **given: Any) -> tuple[Any, ...]:
    """Run a node as ComfyUI does: sockets and changed widgets from ``given``, all other widgets at their defaults."""
    declared = node.INPUT_TYPES()
    names = declared["required"].keys() | declared.get("optional", {}).keys()
    assert given.keys() <= names, given.keys() - names
    values = {}
    for name, (kind, options) in declared["required"].items():
        choices = kind if isinstance(kind, list) else options.get("options")
        value = given.get(name, options.get("default", choices[0] if choices else None))
        assert value is not None, f"{name} is not connected"
        assert choices is None or value in choices, f"{name}: {value!r} is none of {choices}"
        if "min" in options:
            assert options["min"] <= value <= options["max"], name
        values[name] = value
    values |= {name: given[name] for name in given if name not in declared["required"]}
    # So does ComfyUI, around the whole prompt.
    with torch.inference_mode():
        if inspect.ismethod(node.execute):
            return tuple(node.execute(**values).result)
        return tuple(getattr(node(), node.FUNCTION)(**values))
