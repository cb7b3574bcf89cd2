"""The ways in: command line, server, desktop app, diffusers and ComfyUI, and the checkup that ``isoframe doctor`` shows.

Imports the engine and everything below. ``isoframe doctor`` uses ``checkup.examine``; programs use ``client.Client``
to talk to a server.
"""
