"""A node as a class of ComfyUI's classic schema, or of its V3 schema."""

from typing import Any

from .node import WIDGETS, Input, Node

CATEGORY = "Isoframe"
_V3_TYPES = {
    "INT": "Int",
    "FLOAT": "Float",
    "STRING": "String",
    "COMBO": "Combo",
    "BOOLEAN": "Boolean",
    "IMAGE": "Image",
    "LATENT": "Latent",
    "CONDITIONING": "Conditioning",
    "CLIP_VISION_OUTPUT": "ClipVisionOutput",
}


def classic_class(node: Node) -> type:
    """The class that NODE_CLASS_MAPPINGS has always held."""

    def input_types(_: type) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {"required": {}, "optional": {}}
        for entry in node.inputs:
            kind = entry.kind if entry.options is None else entry.options()
            found["optional" if entry.is_optional else "required"][entry.name] = (kind, entry.widget())
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
    return getattr(io, _V3_TYPES[kind]) if kind in _V3_TYPES else io.Custom(kind)


def _v3_input(entry: Input, io: Any) -> Any:
    options: dict[str, Any] = entry.widget() if entry.kind in WIDGETS else {"tooltip": entry.tooltip or None}
    if entry.options is not None:
        options["options"] = entry.options()
    return _v3_type(entry.kind, io).Input(entry.name, optional=entry.is_optional, **options)
