"""The nodes, as ComfyUI asks for them."""

from importlib import import_module
from typing import Any

from .decode_node import DECODE
from .encode_node import ENCODE
from .load_node import LOAD_ENGINE, LOAD_LORA
from .node import classic_class, v3_class
from .sample_node import SAMPLE

NODES = (LOAD_ENGINE, LOAD_LORA, ENCODE, SAMPLE, DECODE)


def node_classes() -> dict[str, type]:
    """The classes by name, for NODE_CLASS_MAPPINGS."""
    api = _v3_api()
    return {node.name: classic_class(node) if api is None else v3_class(node, api.io) for node in NODES}


async def comfy_entrypoint() -> Any:
    """The extension of the V3 schema."""
    api = _v3_api()
    assert api is not None, "called by a ComfyUI that has the schema"
    classes = list(node_classes().values())

    async def get_node_list(_: object) -> list[type]:
        return classes

    return type("IsoframeExtension", (api.ComfyExtension,), {"get_node_list": get_node_list})()


def _v3_api() -> Any:
    """comfy_api, where ComfyUI has it."""
    try:
        return import_module("comfy_api.latest")
    except ImportError:
        return None
