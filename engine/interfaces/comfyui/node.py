"""What a node is, and its class for whichever schema ComfyUI has: the classic one, or V3."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_WIDGET_VALUES = ("default", "min", "max", "step", "multiline", "tooltip")
WIDGETS = ("INT", "FLOAT", "STRING", "COMBO", "BOOLEAN")
ENGINE, LORAS = "ISOFRAME_ENGINE", "ISOFRAME_LORAS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A widget or a socket.

    Attributes:
        name: the argument of the node's function.
        kind: ComfyUI's type.
        options: of a COMBO; asked whenever the menu is built, for files may come and go.
        optional: whether a socket may be left open.
        default: of a widget; None for a socket.
        min: of a number.
        max: of a number.
        step: of a number.
        multiline: of a STRING.
        tooltip: shown beside it.
    """

    name: str
    kind: str
    options: Callable[[], list[str]] | None = None
    optional: bool = False
    default: Any = None
    min: float | None = None
    max: float | None = None
    step: float | None = None
    multiline: bool | None = None
    tooltip: str | None = None

    def widget(self) -> dict[str, Any]:
        """What both schemas call the same, under the names of the fields here."""
        values = {name: getattr(self, name) for name in _WIDGET_VALUES}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Output:
    """One result: its name and ComfyUI's type."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A node of ComfyUI. It has no state: what it returns is all that stays, as long as ComfyUI keeps it.

    Attributes:
        name: in saved workflows; never changes.
        title: shown.
        description: shown.
        inputs: in the order in which they are shown.
        outputs: in the order of what ``run`` returns.
        run: takes the inputs by name.
    """

    name: str
    title: str
    description: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    run: Callable[..., tuple[Any, ...]]


CATEGORY = "Isoframe"


def classic_class(node: Node) -> type:
    """The class that NODE_CLASS_MAPPINGS has always held."""

    def input_types(_: type) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
        for entry in node.inputs:
            kind = entry.kind if entry.options is None else entry.options()
            found["optional" if entry.optional else "required"][entry.name] = (kind, entry.widget())
        return found

    def execute(_: object, /, **values: Any) -> tuple[Any, ...]:
        return node.run(**values)

    return type(
        node.name,
        (),
        {
            "INPUT_TYPES": classmethod(input_types),
            "RETURN_TYPES": tuple(output.kind for output in node.outputs),
            "RETURN_NAMES": tuple(output.name for output in node.outputs),
            "FUNCTION": "execute",
            "CATEGORY": CATEGORY,
            "DESCRIPTION": node.description,
            "execute": execute,
        },
    )


def v3_class(node: Node, io: Any) -> type:
    """The class of the V3 schema; ``io`` is the module of that name in comfy_api."""

    def define_schema(_: type) -> Any:
        return io.Schema(
            node_id=node.name,
            display_name=node.title,
            category=CATEGORY,
            description=node.description,
            inputs=[_v3_input(entry, io) for entry in node.inputs],
            outputs=[
                # Its ids must differ from those of the inputs.
                _v3_type(output.kind, io).Output(id=f"out_{output.name}", display_name=output.name)
                for output in node.outputs
            ],
        )

    def execute(_: type, /, **values: Any) -> Any:
        return io.NodeOutput(*node.run(**values))

    return type(
        node.name,
        (io.ComfyNode,),
        {"define_schema": classmethod(define_schema), "execute": classmethod(execute)},
    )


def _v3_type(kind: str, io: Any) -> Any:
    """The class of a type: that of LATENT is ``io.Latent``; Isoframe's own have none."""
    return io.Custom(kind) if kind in (ENGINE, LORAS) else getattr(io, kind.title().replace("_", ""))


def _v3_input(entry: Input, io: Any) -> Any:
    options: dict[str, Any] = entry.widget() if entry.kind in WIDGETS else {"tooltip": entry.tooltip}
    if entry.options is not None:
        options["options"] = entry.options()
    return _v3_type(entry.kind, io).Input(entry.name, optional=entry.optional, **options)
