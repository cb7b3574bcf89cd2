"""The service without a protocol: videos that are asked for, made and kept.

Imports the engine and below. HTTP, MCP and the app use ``service.VideoService``, ``parameters.VideoParameters``
and ``status.VideoStatus``.
"""
