"""Files that somebody else may have written."""

import json
from pathlib import Path

import pytest

from isoframe.engine.errors import CheckpointError
from isoframe.engine.files import MAX_JSON_BYTES, parse_json, read_json

HOSTILE = {
    "nested-deeply": b"[" * 200_000,
    "nested-objects": b'{"a":' * 200_000,
    "infinity": b"[1e999]",
    "nan": b"[NaN]",
    "digits": b"9" * 5000,
    "no-utf-8": b'["\xff"]',
    "half-a-character": b'["\\ud800"]',
    "half-a-character-as-name": b'{"\\uDFFF": 1}',
    "empty": b"",
    "too-long": b'"' + b"a" * MAX_JSON_BYTES + b'"',
}


@pytest.mark.parametrize("case", HOSTILE)
def test_json_that_nobody_means_is_a_value_error(case: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the messages are json's
        parse_json(HOSTILE[case])


def test_json_is_read_as_the_library_reads_it() -> None:
    values = {"text": "é \U0001f600", "numbers": [1, -2.5, 1e308, True, None], "nested": {"a": [[]]}}
    for ascii_only in (True, False):
        text = json.dumps(values, ensure_ascii=ascii_only)
        assert parse_json(text) == parse_json(text.encode()) == values


@pytest.mark.parametrize("content", [*HOSTILE.values(), b"[]", b"5"])
def test_a_file_that_holds_no_object_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_json(path)
