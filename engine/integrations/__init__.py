"""Adapters that let other libraries run on the engine."""
