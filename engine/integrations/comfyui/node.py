"""What a node is, whatever schema ComfyUI has."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WIDGETS = ("INT", "FLOAT", "STRING", "COMBO", "BOOLEAN")
ENGINE, LORAS = "ISOFRAME_ENGINE", "ISOFRAME_LORAS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A widget or a socket.

    Attributes:
        name: the argument of the node's function.
        kind: ComfyUI's type.
        default: of a widget; None for a socket.
        options: of a COMBO; asked whenever the menu is built, for files may come and go.
        minimum: of a number.
        maximum: of a number.
        step: of a number.
        is_multiline: of a STRING.
        is_optional: whether a socket may be left open.
        tooltip: shown beside it.
    """

    name: str
    kind: str
    default: Any = None
    options: Callable[[], list[str]] | None = None
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None
    is_multiline: bool = False
    is_optional: bool = False
    tooltip: str = ""

    def widget(self) -> dict[str, Any]:
        """What both schemas call the same."""
        values = {
            "default": self.default,
            "min": self.minimum,
            "max": self.maximum,
            "step": self.step,
            "multiline": self.is_multiline or None,
            "tooltip": self.tooltip or None,
        }
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
