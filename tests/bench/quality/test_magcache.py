"""``isoframe bench magcache``: the ratios are what they say, and the engine reads them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from isoframe.bench.commands import app
from isoframe.bench.quality.magnitude_ratios import MagnitudeProbe
from isoframe.engine import Engine, EngineConfig, SamplingConfig
from isoframe.engine.sampling.magnitude import skip_schedule


def test_ratio_is_the_mean_growth_of_the_tokens_residuals() -> None:
    probe = MagnitudeProbe(3)
    # Two tokens with residuals of norms (5, 10), (10, 5), (5, 20).
    for step, (first, second) in enumerate([(1, 2), (2, 1), (1, 4)]):
        residual = torch.tensor([[[3.0 * first, 4.0 * first], [3.0 * second, -4.0 * second]]])
        tokens = torch.randn(1, 2, 2)
        step_pass = SimpleNamespace(
            noisy_tokens=tokens, hidden=lambda r=residual, t=tokens: t + r, head=lambda hidden: hidden
        )
        assert torch.equal(probe.velocity(step, step_pass), tokens + residual)  # type: ignore[arg-type]  # a stand-in
    assert probe.ratios == pytest.approx([1.0, (2 + 0.5) / 2, (0.5 + 4) / 2])


def test_measured_ratios_decide_what_the_engine_skips(tmp_path: Path) -> None:
    arguments = ["magcache", "--order", "forward", "--steps", "4", "--seconds", "1.2", "--device", "cpu"]
    result = CliRunner().invoke(app, [*arguments, "--cache-dir", str(tmp_path)])
    assert result.exit_code == 0, result.output
    ratios = [float(ratio) for ratio in result.stdout.splitlines()[0].removeprefix("forward: ").split()]
    assert len(ratios) == 4
    assert "  3 sections, at most" in result.stdout
    engine = Engine.load("demo", config=EngineConfig(cache_dir=tmp_path, device="cpu"))
    sampling = SamplingConfig(num_sections=1, num_steps=9, order="forward", step_cache="magcache")
    assert engine._denoiser.step_caches(sampling).schedule == skip_schedule(ratios, sampling)


def test_unknown_order_is_refused_before_a_model_is_loaded() -> None:
    result = CliRunner().invoke(app, ["magcache", "--model", "nowhere", "--order", "forwards"])
    assert result.exit_code == 2
    assert "did you mean 'forward'?" in result.stderr
