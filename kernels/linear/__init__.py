"""Linear layers in int8: quantization of tokens and weights, and the products of both.

Imports launching. Other rooms use ``quantize.quantize_rows`` and ``int8_linear.int8_linear``.
"""
