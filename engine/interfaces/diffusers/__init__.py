"""For diffusers: its FramePack transformer class, and its FramePack pipeline made faster and smaller in place."""

from .accelerated import AcceleratedTransformer
from .drop_in import FramepackTransformer, load_transformer
from .pipelines import accelerate, restore

__all__ = ["AcceleratedTransformer", "FramepackTransformer", "accelerate", "load_transformer", "restore"]
