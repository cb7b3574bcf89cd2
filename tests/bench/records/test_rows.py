"""Rows: what is written is complete, what is read is what was written."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_rows import ENVIRONMENT, ROW

from isoframe.bench.records.environment import Environment
from isoframe.bench.records.row_schema import find_violations, load_schema
from isoframe.bench.records.rows import BenchRow, Gate, append_rows, now, read_rows, this_command
from isoframe.engine import InputError

ROOT = Path(__file__).resolve().parents[3]
GPU = replace(ENVIRONMENT, gpu="a card", gpu_bytes=2**33, driver="580.1")


def test_rows_are_appended_one_per_line_and_none_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "new/rows.jsonl"
    append_rows(path, [ROW])
    append_rows(path, [replace(ROW, variant="diffusers"), replace(ROW, unit="ratio", values=(0.5,))])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["variant"], row["unit"], row["median"]) for row in rows] == [
        ("isoframe", "s", 2.0), ("diffusers", "s", 2.0), ("isoframe", "ratio", 0.5),
    ]  # fmt: skip
    assert rows[0]["environment"]["torch"] == "2.13.0"
    assert rows[0]["shape"] == [144, 25]


def test_a_row_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, settings={"steps": 25, "attention": "sdpa", "budget": None}, basis="predicted")]
    append_rows(tmp_path / "rows.jsonl", rows)
    assert read_rows(tmp_path / "rows.jsonl") == rows


def test_precision_is_the_one_of_the_dtype_where_none_is_given() -> None:
    assert ROW.precision == "fp32"
    assert replace(ROW, dtype="bfloat16", precision="int8").precision == "int8"


@pytest.mark.parametrize("values", [(), (1.0, float("nan")), (float("inf"),)])
def test_a_row_without_a_number_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="values of forward-demo must be at least one finite number"):
        replace(ROW, values=values)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (replace(ROW, unit=""), "row.unit must not be empty"),
        (replace(ROW, gate=Gate(is_green=True, text="")), "row.gate.text must not be empty"),
        (replace(ROW, dtype="", precision=""), "row.precision must not be empty"),
        (replace(ROW, environment=replace(ENVIRONMENT, cpu="")), "row.environment.cpu must not be empty"),
        (replace(ROW, environment=replace(ENVIRONMENT, torch="")), "row.environment.torch must not be empty"),
        (replace(ROW, environment=replace(ENVIRONMENT, commit=None)), "a row needs the commit"),
        (replace(ROW, environment=replace(GPU, driver=None)), "a row of a GPU needs its driver"),
        (replace(ROW, environment=replace(GPU, triton=None)), "a row of a GPU needs the version of Triton"),
        (replace(ROW, basis="guessed"), "row.basis must be one of measured, predicted, emulated"),
    ],
)
def test_an_incomplete_row_is_not_written(tmp_path: Path, row: BenchRow, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        append_rows(tmp_path / "rows.jsonl", [ROW, row])
    assert not (tmp_path / "rows.jsonl").exists()


@pytest.mark.parametrize("name", load_schema()["required"])
def test_a_line_that_lacks_a_field_is_not_read(tmp_path: Path, name: str) -> None:
    content = json.loads(ROW.to_json())
    del content[name]
    (tmp_path / "rows.jsonl").write_text(ROW.to_json() + "\n" + json.dumps(content) + "\n")
    with pytest.raises(InputError, match=rf"rows.jsonl, line 2 is no result: .*row\.{name} is missing"):
        read_rows(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("text", ["no json", '{"version": 1}', "[]"])
def test_a_foreign_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(InputError, match=r"rows.jsonl, line 1 is no result"):
        read_rows(tmp_path / "rows.jsonl")


def test_schema_and_class_have_the_same_fields() -> None:
    schema = load_schema()
    assert set(schema["required"]) == set(schema["properties"])
    assert set(schema["properties"]) == {*BenchRow.__dataclass_fields__, "version", "median"}
    assert set(schema["properties"]["environment"]["properties"]) <= set(Environment.__dataclass_fields__)


def test_jsonschema_agrees_with_our_reading_of_the_schema() -> None:
    validator = pytest.importorskip("jsonschema").Draft202012Validator(load_schema())
    content = json.loads(ROW.to_json())
    assert validator.is_valid(content)
    for name in content:
        others = {**content, name: None}
        assert not validator.is_valid(others)
        assert list(find_violations(others, load_schema()))


def test_committed_results_fit_the_schema() -> None:
    files = sorted((ROOT / "bench/results").glob("*.jsonl"))
    assert files
    assert all(read_rows(file) for file in files)


@pytest.mark.parametrize(
    ("value", "schema", "violations"),
    [
        (1, {"type": "string"}, ["row must be string, got 1"]),
        (True, {"type": ["integer", "null"]}, ["row must be integer or null, got True"]),
        ({"a": 1, "b": 2}, {"properties": {"a": {}}, "additionalProperties": False}, ["row.b is unknown"]),
        ({"a": "x"}, {"additionalProperties": {"type": "number"}}, ["row.a must be number, got 'x'"]),
        ([1, "x"], {"items": {"type": "integer"}}, ["row[1] must be integer, got 'x'"]),
        (3, {"const": 2}, ["row must be 2, got 3"]),
        (None, {"type": ["number", "null"]}, []),
    ],
)
def test_violations_name_the_place(value: Any, schema: dict[str, Any], violations: list[str]) -> None:
    assert list(find_violations(value, schema)) == violations


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        (["/home/me/.venv/bin/isoframe", "bench", "forward"], "isoframe bench forward"),
        (
            ["/x/bench/__main__.py", "forward", "--json", "a b"],
            "python -P -m isoframe.bench forward --json 'a b'",
        ),
    ],
)
def test_command_names_no_folder_of_the_machine(
    monkeypatch: pytest.MonkeyPatch, argv: list[str], command: str
) -> None:
    monkeypatch.setattr(sys, "argv", argv)
    assert this_command() == command


def test_date_is_utc_to_the_second() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", now())
