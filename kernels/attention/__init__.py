"""Queries, keys and attention."""
