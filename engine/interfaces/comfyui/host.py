"""What ComfyUI offers to a node: files, progress, previews, interruption, the device's memory."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor


def file_names(kind: str) -> list[str]:
    """The .safetensors files in ComfyUI's folders of a kind, such as "loras"."""
    names: list[str] = import_module("folder_paths").get_filename_list(kind)
    return [name for name in names if name.endswith(".safetensors")]


def file_path(kind: str, name: str) -> str:
    """The path of a file that :func:`file_names` lists; ComfyUI raises an error where it is gone."""
    path: str = import_module("folder_paths").get_full_path_or_raise(kind, name)
    return path


def make_progress(total: int) -> Callable[..., None]:
    """Moves the node's bar: called with the steps done, and a picture in ``preview``."""
    move: Callable[..., None] = import_module("comfy.utils").ProgressBar(total).update_absolute
    return move


def check_interrupt() -> None:
    """Raise ComfyUI's exception if the user has cancelled."""
    import_module("comfy.model_management").throw_exception_if_processing_interrupted()


def make_previewer(device: torch.device) -> Callable[[Tensor], Any]:
    """Draws latents [1, 16, T, Y, X] as the user has chosen; gives None where previews are off."""
    formats = import_module("comfy.latent_formats")
    previewer = import_module("latent_preview").get_previewer(device, formats.HunyuanVideo())
    return lambda latents: previewer and previewer.decode_latent_to_preview_image("JPEG", latents)


def take_memory(device: torch.device) -> None:
    """Have ComfyUI's own models leave the card: the budget of the engine is counted on what is free then."""
    if device.type != "cpu":
        import_module("comfy.model_management").unload_all_models()
        give_memory_back(device)


def give_memory_back(device: torch.device) -> None:
    """Let ComfyUI have what is not used any more."""
    if device.type != "cpu":
        import_module("comfy.model_management").soft_empty_cache()
