"""How kernels are launched with the settings of a card, how their arguments are checked, and where they are registered.

Imports nothing of the other rooms. Kernels use :func:`~.launch.launch`, :func:`~.launch.settings` and
:func:`~.registry.register`; tests and benchmarks read :data:`~.registry.KERNELS`.
"""
