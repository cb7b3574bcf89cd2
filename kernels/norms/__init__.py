"""Norms, gates and the residuals of a step."""
