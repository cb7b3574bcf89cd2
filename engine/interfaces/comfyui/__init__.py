"""Isoframe's nodes for ComfyUI: put this folder, or a link to it, into ComfyUI's ``custom_nodes``.

ComfyUI loads a folder under a name made from its path, from which nothing above the folder can be reached: the nodes
come from the installed package. They are of the V3 schema where ComfyUI has it, else of the classic one.
"""

from importlib import import_module

_registration = import_module("isoframe.engine.interfaces.comfyui.registration")

NODE_CLASS_MAPPINGS = _registration.node_classes()
NODE_DISPLAY_NAME_MAPPINGS = {node.name: node.title for node in _registration.NODES}
comfy_entrypoint = _registration.comfy_entrypoint

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "comfy_entrypoint"]
