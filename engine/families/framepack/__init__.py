"""FramePack: HunyuanVideo's transformer with a packed history, its units, sizes, companions and data.

May import what ``families`` may. ``family`` has its answers; ``transformer`` computes.
"""
