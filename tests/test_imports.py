"""What importing the packages does not do."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("transformers", "diffusers", "av", "gradio", "matplotlib")


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter that sees the packages and not the repository root."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / ".src"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("package", ["engine", "engine.engine", "kernels", "quant", "bench"])
def test_import_is_silent_and_light(package: str) -> None:
    result = run_python(
        f"import sys, isoframe.{package}\n"
        f"assert not sys.modules.keys() & set({HEAVY}), sys.modules.keys() & set({HEAVY})\n"
        "torch = sys.modules.get('torch')\n"
        "assert torch is None or not torch.cuda.is_initialized()\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout + result.stderr == ""


def test_command_line_answers_without_torch() -> None:
    result = run_python(
        "import sys\n"
        "from isoframe.engine.commands.app import build_app\n"
        "try:\n"
        "    build_app()(['generate', 'x.png', '--prompt', 'p', '--out', 'o.mp4', '--seconds', '0'])\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 2\n"
        "assert not sys.modules.keys() & {'torch', 'numpy', 'PIL'}\n"
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == "error: seconds must be a positive number, got 0.0\n"


def test_benchmark_commands_are_listed_without_torch() -> None:
    result = run_python("import sys, isoframe.bench.commands\nassert 'torch' not in sys.modules")
    assert result.returncode == 0, result.stderr


def test_kernels_refuse_to_be_imported_by_their_bare_name() -> None:
    result = run_python(f"import sys; sys.path.insert(0, {str(ROOT)!r}); import kernels")
    assert "ImportError: imported from the working directory; use isoframe.kernels" in result.stderr
