"""Videos as a service: one layer without any protocol, and HTTP, MCP and Ray on top of it.

| file | holds |
|---|---|
| service.py | the videos: create, look up, cancel, delete, resume after a restart |
| index.py, notes.py, entry.py, status.py | its index, what it adds to a job's folder, a job at work, what it answers |
| workers.py, ray_workers.py | who makes the videos: an engine in this process, or actors of Ray |
| parameters.py, pictures.py, limits.py | what a request may ask for |
| app.py, routes.py, docs_page.py, schemas.py, problems.py, guard.py, body_limit.py, event_stream.py, metrics.py, listening.py | HTTP |
| mcp_tools.py | MCP |
"""
