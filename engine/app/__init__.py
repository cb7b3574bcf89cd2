"""The desktop app: pages over :mod:`isoframe.engine.server`'s service; nothing is decided here that a job does not know."""
