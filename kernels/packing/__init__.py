"""Patches and rotary tables, written into their places of the packed sequence.

Imports launching. Other rooms use ``patchify.patchify_pack`` and ``aligned_rope.aligned_rope``.
"""
