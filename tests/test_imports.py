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
        "from isoframe.engine.interfaces.commands.command_line import build_app\n"
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


def test_a_script_in_the_root_of_a_clone_finds_no_library_called_kernels() -> None:
    result = run_python(
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); import kernels\n"
        f"assert kernels.__file__.startswith({str(ROOT)!r}) and 'torch' not in sys.modules\n"
        "from transformers.utils import is_kernels_available\n"
        "assert not is_kernels_available()\n"
        "import transformers.modeling_utils, isoframe.kernels\n"
    )
    assert result.returncode == 0, result.stderr


# The sizes are those of the built-in model's configuration, so that the step is a real one.
DEMO_STEP = """
import sys, warnings
sys.modules["triton"] = None
# torch asks for Triton on its own account.
warnings.simplefilter("ignore")
import torch
from isoframe.engine import Conditioning, Engine, SamplingConfig
from isoframe.engine.companions.components import find_components
from isoframe.engine.families.opening import open_transformer
from isoframe.kernels import KERNELS

config = open_transformer(find_components("demo").transformer).config
conditioning = Conditioning(
    text_embeds=torch.randn(1, 5, config.text_embed_dim),
    text_mask=torch.ones(1, 5, dtype=torch.bool),
    pooled_embeds=torch.randn(1, config.pooled_projection_dim),
    image_embeds=torch.randn(1, 4, config.image_proj_dim),
    start_latent=torch.randn(1, config.in_channels, 1, 6, 10),
)
latents = Engine.load("demo").sample_video(conditioning, SamplingConfig(num_sections=1, num_steps=1))
assert latents.shape == (1, config.in_channels, 10, 6, 10) and latents.isfinite().all()
spec = KERNELS["modulated_layer_norm"]
try:
    spec.launch(*spec.make_inputs(spec.test_shapes[0], torch.float32, torch.device("cpu")))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_demo_step_runs_without_triton_and_a_kernel_says_what_to_install() -> None:
    result = run_python(DEMO_STEP)
    assert result.returncode == 0, result.stderr
    assert "pip install triton" in result.stdout
