"""Videos as a service: one layer without any protocol, and HTTP, MCP and Ray around it.

``videos`` holds the service and who makes its videos, ``http`` its operations over HTTP, ``mcp_tools`` those for assistants.
It may import the engine and its jobs, but no other interface. Outside it are used ``serving.Serving``, which opens a service,
``videos.service.VideoService``, and what serves it: ``http.application.make_app`` and ``mcp_tools.make_mcp_server``.
"""
