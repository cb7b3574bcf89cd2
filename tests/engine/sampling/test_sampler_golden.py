"""Schedules and samplers against published values; the oracle passes the same table."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import unipc
from published_schedule import SIGMAS_25, TIMESTEPS_25
from torch import Tensor

from isoframe.engine.sampling.sampler import make_sampler, sigma_schedule

TOLERANCE = 5e-6
FIXTURES = Path(__file__).parents[2] / "fixtures"

# Last x0 of the toy model below, from linspace(-1.5, 1.5, 4) at shift 7.
GOLDEN = {
    ("unipc", 1): (-0.6560375, 0.4369881, 0.4869882, -0.5060375),
    ("unipc", 2): (-0.5987042, 0.5675704, 0.5131863, -0.3248543),
    ("unipc", 3): (-0.5229571, 0.6794952, 0.5280094, -0.1592983),
    ("unipc", 4): (-0.4371833, 0.7523745, 0.5414786, -0.0284249),
    ("unipc", 8): (-0.0736803, 0.8388340, 0.5657468, 0.2841504),
    ("unipc", 25): (0.9191866, 0.7058999, 0.5818453, 0.5526984),
    ("unipc-bh2", 3): (-0.5236044, 0.6785567, 0.5282915, -0.1571484),
}
CASES = pytest.mark.parametrize(("name", "num_steps"), GOLDEN, ids=[f"{name}-{n}" for name, n in GOLDEN])
SCHEDULES = pytest.mark.parametrize("schedule", [sigma_schedule, unipc.schedule], ids=["engine", "oracle"])

Schedule = Callable[..., Tensor]


def toy_x0(x: Tensor, sigma: Tensor) -> Tensor:
    return torch.cos(1.7 * x) * (1 - 0.3 * sigma) + 0.05 * x


def run_engine(name: str, x: Tensor, sigmas: Tensor) -> Tensor:
    sampler = make_sampler(name, sigmas)
    for step in range(len(sigmas) - 1):
        x = sampler.update(x, toy_x0(x, sigmas[step]), step)
    return x


def max_error(actual: Tensor, expected: tuple[float, ...]) -> float:
    return float((actual.double().flatten() - torch.tensor(expected, dtype=torch.float64)).abs().max())


@CASES
def test_engine_reaches_golden_values(name: str, num_steps: int) -> None:
    x = torch.linspace(-1.5, 1.5, 4).view(1, 1, 1, 2, 2)
    result = run_engine(name, x, sigma_schedule(num_steps, 0, shift=7.0))
    assert max_error(result, GOLDEN[name, num_steps]) <= TOLERANCE


@pytest.mark.parametrize(("name", "variant"), [("unipc", "bh1"), ("unipc-bh2", "bh2")])
def test_25_steps_of_13680_tokens_reach_the_published_result(name: str, variant: str) -> None:
    """A field that oscillates in sigma: the order of fp32 operations moves its result by more than this tolerance."""
    golden = np.load(FIXTURES / "unipc_golden.npz")
    x = start = torch.from_numpy(golden["noise"])
    expected = tuple(golden[f"{variant}_13680_25"].flatten().tolist())
    phase = torch.linspace(0, 50, start.numel()).view(start.shape)
    sigmas = sigma_schedule(25, 13680)

    def denoise(x: Tensor, i: int) -> Tensor:
        return 0.7 * torch.sin(1.3 * x + 0.4) + 0.02 * torch.sin(400 * sigmas[i] + phase)

    sampler = make_sampler(name, sigmas)
    for step in range(25):
        x = sampler.update(x, denoise(x, step), step)
    assert max_error(x, expected) <= 1e-6
    assert max_error(unipc.sample_unipc(denoise, start, sigmas, variant=variant), expected) <= 1e-6


@CASES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_oracle_reaches_golden_values(name: str, num_steps: int, dtype: torch.dtype) -> None:
    sigmas = unipc.schedule(num_steps, 0, shift=7.0)
    variant = "bh2" if name.endswith("bh2") else "bh1"
    start = torch.linspace(-1.5, 1.5, 4)
    result = unipc.sample_unipc(
        lambda x, i: toy_x0(x, sigmas[i]), start, sigmas, variant=variant, dtype=dtype
    )
    assert max_error(result, GOLDEN[name, num_steps]) <= TOLERANCE


@pytest.mark.parametrize("name", ["unipc", "unipc-bh2", "euler"])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 25, 50, 100])
@pytest.mark.parametrize("num_tokens", [1234, 13680])
def test_engine_equals_oracle_on_a_rough_field(name: str, num_steps: int, num_tokens: int) -> None:
    """A field whose predictions jump from step to step weighs the high-order terms of every step."""
    sigmas = unipc.schedule(num_steps, num_tokens)
    jumps = torch.randn(num_steps, 1, 3, 2, 4, 6)

    def denoise(x: Tensor, i: int) -> Tensor:
        return 0.5 * torch.sin(2 * x) + jumps[i]

    x = start = torch.randn(1, 3, 2, 4, 6)
    sampler = make_sampler(name, sigmas)
    for step in range(num_steps):
        x = sampler.update(x, denoise(x, step), step)
    if name == "euler":
        expected = unipc.sample_euler(denoise, start, sigmas)
    else:
        expected = unipc.sample_unipc(denoise, start, sigmas, variant="bh2" if name.endswith("2") else "bh1")
    assert float((x - expected).abs().max() / expected.abs().max()) <= TOLERANCE


def test_euler_ends_at_sigma_zero() -> None:
    """Constant velocity v: every Euler path from x ends at x - v, in any number of steps."""
    x = torch.randn(1, 2, 1, 4, 4)
    velocity = torch.randn_like(x)
    sigmas = sigma_schedule(4, 500)
    sampler, latents = make_sampler("euler", sigmas), x
    for step in range(4):
        latents = sampler.update(latents, latents - sigmas[step] * velocity, step)
    assert torch.allclose(latents, x - velocity, atol=1e-5)


@SCHEDULES
def test_schedule_of_25_steps(schedule: Schedule) -> None:
    sigmas = schedule(25, 13680)
    assert sigmas.dtype == torch.float32
    assert sigmas.shape == (26,)
    assert max_error(sigmas, SIGMAS_25) <= TOLERANCE
    assert tuple((sigmas[:-1] * 1000).bfloat16().tolist()) == TIMESTEPS_25


@SCHEDULES
def test_shift_saturates_at_seven(schedule: Schedule) -> None:
    """Shift 7 for 8798 tokens and more; below, its logarithm is linear in the tokens (480x480: 1.828)."""
    sevenfold = schedule(4, 0, shift=7.0)
    assert torch.equal(schedule(4, 8798), sevenfold)
    assert torch.equal(schedule(4, 17970), sevenfold)
    assert not torch.equal(schedule(4, 8700), sevenfold)

    middle = float(schedule(2, 9 * 30 * 30)[1])
    assert math.log(middle / (1 - middle)) == pytest.approx(1.828, abs=5e-4)
    smallest = float(schedule(2, 0)[1])
    assert math.log(smallest / (1 - smallest)) == pytest.approx(0.4566667, abs=TOLERANCE)
