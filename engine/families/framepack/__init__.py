"""FramePack: HunyuanVideo's transformer with a packed history."""
