"""Seconds of a denoising step, a section and a frame: ``bench step``.

May import meters, subjects, operations and records. Outside: ``step_bench.StepBench``, ``step_check.check_step``.
"""
