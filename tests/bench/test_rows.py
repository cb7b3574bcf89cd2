import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from isoframe.bench.environment import Environment
from isoframe.bench.rows import BenchRow, append_rows, now, this_command

ENVIRONMENT = Environment(
    cpu="a cpu", num_cores=2, num_threads=2, ram_bytes=2**34, gpu=None, gpu_bytes=None, driver=None,
    os="Linux 6", python="3.11.7", torch="2.13.0", triton="3.7.1", diffusers=None, isoframe=None, commit="abc",
)  # fmt: skip
ROW = BenchRow(
    case="forward-demo", variant="isoframe", shape=(144, 25), dtype="float32", unit="s", values=(3.0, 1.0, 2.0),
    gate="relative error 1e-7 <= 1e-5", environment=ENVIRONMENT, command="isoframe bench forward",
    date="2026-01-01T00:00:00+00:00",
)  # fmt: skip


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


@pytest.mark.parametrize("values", [(), (1.0, float("nan")), (float("inf"),)])
def test_a_row_without_a_number_is_refused(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="values of forward-demo must be at least one finite number"):
        replace(ROW, values=values)


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
