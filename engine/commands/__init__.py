"""The ``isoframe`` command; one file a sub-command."""

from .app import main

__all__ = ["main"]
