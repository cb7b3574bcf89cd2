"""The service over HTTP: its operations, their data, and who may call them.

Imports the engine and ``videos``. Others use ``application.make_app`` and, to serve it on a socket,
``listening.make_server``.
"""
