"""Modulated norms, gated residuals, and what a step cache computes around the blocks.

Imports launching and linear. The package uses ``norm.modulated_layer_norm``, ``gate.gated_residual`` and
``step.step_change``.
"""
