"""For diffusers: its FramePack transformer class, and its FramePack pipeline made faster and smaller in place.

Imports the engine and below. Programs use ``accelerate`` and ``restore`` for a pipeline, ``load_transformer``
for a class.
"""

from .accelerated import AcceleratedTransformer
from .drop_in import FramepackTransformer, load_transformer
from .pipelines import accelerate, restore

__all__ = ["AcceleratedTransformer", "FramepackTransformer", "accelerate", "load_transformer", "restore"]
