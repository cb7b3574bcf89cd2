"""Quantization and products in int8."""
