"""The desktop app: pages in a browser over the service of :mod:`..server`; nothing is decided here that a job does not know.

It may import the engine and the server, but no commands. Outside it is used ``running.serve_page``.
"""
