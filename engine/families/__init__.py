"""Architectures of models: everything that the engine asks of one, and the registry that chooses between them.

May import base, request, checkpoints and model. Others use ``registry.family_of(config)``, which answers as
``family.Family`` says, and ``opening.open_transformer``; only a family's own folder knows its layers and token counts.
"""
