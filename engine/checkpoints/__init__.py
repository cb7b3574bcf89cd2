"""Files of weights as they are found: safetensors, the Hub, LoRAs.

May import base alone. Others use ``checkpoint.Checkpoint``, which ``families.opening`` opens, and ``lora.LoraLibrary``.
"""
