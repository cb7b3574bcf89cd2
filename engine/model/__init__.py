"""What every packed transformer is made of: attention, units of weights, LoRA layers."""
