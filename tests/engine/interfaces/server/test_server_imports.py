"""What the service and its commands need, and what they say where it is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / ".src")}
    command = [sys.executable, "-P", "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_the_service_knows_no_protocol() -> None:
    result = run_python(
        "import sys, isoframe.engine.interfaces.server.videos.service, isoframe.engine.interfaces.server.videos.workers, isoframe.engine.interfaces.client\n"
        "assert not sys.modules.keys() & {'fastapi', 'starlette', 'uvicorn', 'mcp', 'ray', 'pydantic'}\n"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("fastapi", ["serve"], "server"),
        ("mcp.server.mcpserver", ["mcp"], "mcp"),
        ("ray", ["serve", "--ray", "local", "--port", "0"], "ray"),
    ],
)
def test_a_missing_package_is_told_with_the_line_that_installs_it(
    package: str, arguments: list[str], extra: str, tmp_path: Path
) -> None:
    result = run_python(
        f"import sys; sys.modules[{package!r}] = None\n"
        "from isoframe.engine.interfaces.commands.command_line import build_app\n"
        f"build_app()({[*arguments, '--cache-dir', str(tmp_path)]!r})\n"
    )
    assert result.returncode == 2, result.stderr
    assert f"pip install 'isoframe[{extra}]'" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "host must be a loopback address"),
        (["--api-key", "short"], "api_key must have at least 16 characters, got 5"),
        (["--max-queue", "0"], "--max-queue must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--ray", "local", "--threads", "2"], "--threads must not be given with --ray"),
        (["--ray-actors", "0"], "--ray-actors must be at least 1, got 0"),
    ],
)
def test_wrong_options_are_told_before_torch_is_loaded(arguments: list[str], message: str) -> None:
    result = run_python(
        "import sys\n"
        "from isoframe.engine.interfaces.commands.command_line import build_app\n"
        "try:\n"
        f"    build_app()({['serve', *arguments]!r})\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
