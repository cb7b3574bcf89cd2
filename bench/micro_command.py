"""``isoframe bench micro``: small pieces of the work, timed by pytest-benchmark."""

import importlib.util
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from .rows import BenchRow

# pytest finds modules by their files, and would import this package by another name.
_SUITE = "from isoframe.bench.micro_suite import test_micro\n\n__all__ = ['test_micro']\n"
_LIBRARIES = {"pytest": "pytest", "pytest_benchmark": "pytest-benchmark"}


def micro(
    only: Annotated[
        str | None, typer.Option("--only", metavar="WORDS", help="Pieces whose name has it, as pytest's -k.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Append the results to FILE as JSON lines.")
    ] = None,
) -> None:
    """Time single kernels, a small step, the sampler and the planner on this machine; exit 1 if one fails."""
    from ..engine.commands.failures import readable_errors
    from ..engine.errors import ConfigError

    with readable_errors(debug=False):
        missing = [pip for name, pip in _LIBRARIES.items() if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"bench micro needs {' and '.join(missing)}: pip install {' '.join(missing)}, or the extra isoframe[bench]"
            )
        import pytest

        with tempfile.TemporaryDirectory() as folder:
            stored = Path(folder) / "benchmark.json"
            # The settings of whatever project the user is in are not ours.
            options = [
                "-q",
                "-c",
                str(Path(folder) / "none.ini"),
                "--rootdir",
                folder,
                "-p",
                "no:cacheprovider",
            ]
            (Path(folder) / "none.ini").write_text("[pytest]\n", encoding="utf-8")
            suite = Path(folder) / "test_micro.py"
            suite.write_text(_SUITE, encoding="utf-8")
            chosen = [] if only is None else ["-k", only]
            code = pytest.main(
                [*options, *chosen, "--benchmark-enable", "--benchmark-columns=median,iqr,rounds",
                 f"--benchmark-json={stored}", "--import-mode=importlib", str(suite)]
            )  # fmt: skip
            if code == 0 and json_file is not None:
                from .rows import append_rows

                append_rows(json_file, _rows(json.loads(stored.read_text(encoding="utf-8"))))
    if code != 0:
        raise typer.Exit(1)


def _rows(report: dict[str, Any]) -> "Iterator[BenchRow]":
    """Rows of what pytest-benchmark stored."""
    import torch

    from .correctness import check_operations
    from .rows import BenchRow

    is_cuda = torch.cuda.is_available()
    gate = check_operations(torch.device("cuda", 0) if is_cuda else torch.device("cpu"))
    for entry in report["benchmarks"]:
        yield BenchRow(
            case=f"micro-{entry['group']}",
            variant=entry["param"],
            shape=(),
            dtype="bfloat16" if is_cuda else "float32",
            unit="s",
            values=(entry["stats"]["median"],),
            gate=gate,
            settings={"rounds": entry["stats"]["rounds"], "iqr": entry["stats"]["iqr"]},
        )
