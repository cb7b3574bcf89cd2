"""What transformers of every family are made of: conditioning, packed sequence, attention, units, LoRA layers.

Imports request, checkpoints and below. Others use ``conditioning.Conditioning``, ``attention.SelfAttention``
and ``units.UnitLayout``.
"""
