"""Weights on their way from disk to the device: stores, tiers, streaming."""
