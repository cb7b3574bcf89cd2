"""Ours beside diffusers', the same result first: ``bench forward`` (a step) and ``bench peers`` (a section or a video).

May import meters, subjects and records. Outside: ``peers_bench.PeersBench``, ``step.CASES``.
"""
