"""Files of weights as they are found: safetensors, the Hub, LoRAs."""
