"""The desktop app: pages over :mod:`isoframe.engine.interfaces.server`'s service; nothing is decided here that a job does not know."""
