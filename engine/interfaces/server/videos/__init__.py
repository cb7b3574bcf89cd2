"""The service without a protocol: videos that are asked for, made and kept."""
