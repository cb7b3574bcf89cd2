"""Attention on int8 queries and keys, and the norm, rotation and quantization of both that come before.

Imports launching, linear and packing. The package uses ``int8_attention.int8_attention``, ``rope.qk_norm_rope``
and ``rope_int8.qk_norm_rope_int8``.
"""
