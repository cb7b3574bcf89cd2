"""The demo model: its world, its training and its weights."""
