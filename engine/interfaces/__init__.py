"""The ways in: command line, server, desktop app, diffusers and ComfyUI, and the checkup that ``isoframe doctor`` shows.

Imports the engine and everything below. Nothing but the entry points of the package and ``bench`` imports from
here.
"""
