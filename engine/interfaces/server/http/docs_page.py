"""The OpenAPI document as a page without scripts: nothing is loaded from elsewhere, and it works without a network."""

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

_HEAD = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1c1c1c; background: #fff; }}
h2 {{ margin-top: 2.5rem; font-size: 1.1rem; }} h2 b {{ color: #0b5394; }} code, h2 {{ font-family: ui-monospace, monospace; }}
table {{ border-collapse: collapse; width: 100%; font-size: .9rem; }} caption {{ text-align: left; color: #555; }}
th, td {{ text-align: left; vertical-align: top; padding: .25rem .75rem .25rem 0; border-bottom: 1px solid #ddd; }}
@media (prefers-color-scheme: dark) {{ body {{ color: #e8e8e8; background: #16181c; }} h2 b {{ color: #8ab4f8; }}
  caption {{ color: #aaa; }} th, td {{ border-color: #333; }} a {{ color: #8ab4f8; }} }}
</style>
"""


def docs_page(document: Mapping[str, Any]) -> str:
    """HTML of an OpenAPI ``document``."""
    info = document["info"]
    title = f"{info['title']} {info['version']}"
    parts = [
        _HEAD.format(title=escape(title)),
        f"<h1>{escape(title)}</h1><p>{escape(info['description'])} ",
        'For programs: <a href="/openapi.json">/openapi.json</a>.</p>',
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += _operation(method.upper(), path, operation)
    for name, schema in sorted(document["components"]["schemas"].items()):
        parts.append(
            f'<h2 id="{escape(name)}">{escape(name)}</h2><p>{escape(schema.get("description", ""))}</p>'
        )
        parts.append(_table("fields", _properties(schema)))
    return "".join(parts)


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><b>{method}</b> {escape(path)}</h2><p>{escape(operation.get('description', ''))}</p>"
    yield _table("parameters", [_parameter(parameter) for parameter in operation.get("parameters", ())])
    contents = operation.get("requestBody", {}).get("content", {})
    yield _table("body", [(escape(kind), _type(content["schema"]), "") for kind, content in contents.items()])
    yield _table("answers", [_answer(status, told) for status, told in operation["responses"].items()])


def _parameter(parameter: Mapping[str, Any]) -> tuple[str, str, str]:
    schema = parameter["schema"]
    text = parameter.get("description") or schema.get("description", "")
    return f"{escape(parameter['name'])} <i>{parameter['in']}</i>", _type(schema), escape(text)


def _answer(status: str, told: Mapping[str, Any]) -> tuple[str, str, str]:
    kinds = [
        _type(content["schema"]) if kind == "application/json" else escape(kind)
        for kind, content in told.get("content", {}).items()
    ]
    return escape(status), ", ".join(kinds), escape(told["description"])


def _properties(schema: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    needed = schema.get("required", ())
    return [
        (
            escape(name) + (" <i>required</i>" if name in needed else ""),
            _type(value) + (f" = {escape(repr(value['default']))}" if "default" in value else ""),
            escape(value.get("description", "")),
        )
        for name, value in schema.get("properties", {}).items()
    ]


def _type(schema: Mapping[str, Any]) -> str:
    """What a value is, with its bounds."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(choice) for choice in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return ", ".join(escape(str(value)) for value in schema.get("enum", [schema.get("const")]))
    kind = escape(str(schema.get("type", "any")))
    if kind == "array" and "items" in schema:
        return f"array of {_type(schema['items'])}"
    return kind + _bounds(schema)


def _bounds(schema: Mapping[str, Any]) -> str:
    signs = {"minimum": "&ge;", "exclusiveMinimum": "&gt;", "maximum": "&le;", "exclusiveMaximum": "&lt;"}
    told = [f" {sign} {schema[name]:g}" for name, sign in signs.items() if name in schema]
    return "".join(told) + (f", multiple of {schema['multipleOf']}" if "multipleOf" in schema else "")


def _table(caption: str, rows: list[tuple[str, str, str]]) -> str:
    if not rows:
        return ""
    cells = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><caption>{caption}</caption>{cells}</table>"
