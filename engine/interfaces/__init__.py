"""The doors: commands, server, app, diffusers, ComfyUI."""
