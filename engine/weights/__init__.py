"""Weights on their way from the disk to the device: unit stores and their conversion, host tiers, streaming, memory budgets.

May import the base, ``request``, ``checkpoints``, ``families``, ``model`` and ``planning``. The outside uses
:class:`~.memory.ModelMemory` (places a model inside its budget), :func:`~.store.open_store` and
:func:`~.conversion.convert`.
"""
