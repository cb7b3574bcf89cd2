"""The model's operations one by one: right or wrong, compiled for every architecture, tuned, timed, described.

May import meters, subjects, peers (the demo's shape) and records. Outside: ``correctness.check_operations``, the check that
comes before every figure; ``compiled_kernels.compile_pairs``.
"""
