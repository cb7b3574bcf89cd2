"""Configuration checks itself, and its messages name the argument, the requirement and the value."""

import math
from typing import Any

import pytest

from isoframe.engine import ConfigError, EngineConfig, Request, SamplingConfig

REQUEST = {"image": "x.png", "prompt": "a red circle moves right"}


@pytest.mark.parametrize(
    ("seconds", "num_sections"), [(0.1, 1), (1, 1), (3, 2), (5, 4), (20, 17), (60, 50), (120, 100)]
)
def test_sections_are_rounded_half_to_even(seconds: float, num_sections: int) -> None:
    assert Request(**REQUEST, seconds=seconds).num_sections == num_sections


def test_order_auto_takes_the_default_of_the_checkpoint() -> None:
    request = Request(**REQUEST, seed=7, num_steps=3)
    assert request.sampling("forward") == SamplingConfig(num_sections=4, order="forward", seed=7, num_steps=3)
    assert Request(**REQUEST, order="inverted").sampling("forward").order == "inverted"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": 0}, "seconds must be a positive number, got 0"),
        ({"seconds": -1.5}, "seconds must be a positive number, got -1.5"),
        ({"seconds": math.nan}, "seconds must be a positive number, got nan"),
        ({"seconds": 3601}, r"seconds must be at most 3600, got 3601; force=True \(--force\) accepts more"),
        ({"seconds": "five"}, "seconds must be a positive number, got 'five'"),
        ({"guidance_scale": "10"}, "guidance_scale must be a finite number >= 0, got '10'"),
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"num_steps": 2.5}, "num_steps must be an integer of at least 1, got 2.5"),
        (
            {"order": "invert"},
            "order must be one of auto, inverted, forward, endpoints, planned, custom, got 'invert'; did you mean 'inverted'",
        ),
        (
            {"step_cache": "tcache"},
            "step_cache must be one of none, teacache, magcache, got 'tcache'; did you mean 'teacache'",
        ),
        ({"sampler": "unipcc"}, "did you mean 'unipc'"),
        ({"crf": 52}, r"crf must be from 0 \(lossless\) to 51 for h264, got 52"),
        ({"size": (100, 96)}, r"size must be \(height, width\), multiples of 16, got \(100, 96\)"),
        ({"cfg_rescale": 1.5}, "cfg_rescale must be from 0 to 1, got 1.5"),
        ({"step_cache_retention": 1.1}, "step_cache_retention must be from 0 to 1, got 1.1"),
        ({"step_cache_max_skips": 0}, "step_cache_max_skips must be an integer of at least 1, got 0"),
        ({"guidance_scale": math.inf}, "guidance_scale must be a finite number >= 0, got inf"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"posterior": "mean"}, "posterior must be one of sample, mode, got 'mean'"),
    ],
)
def test_bad_request_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Request(**{**REQUEST, **change})


def test_force_accepts_more_than_an_hour() -> None:
    assert Request(**REQUEST, seconds=7200, force=True).num_sections == 6000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_sections": 0}, "num_sections must be an integer of at least 1, got 0"),
        ({"latent_paddings": (1, 0)}, "latent_paddings must have num_sections = 3 entries, got 2"),
        ({"latent_paddings": (2, 1, 1)}, "latent_paddings must end with 0"),
        ({"latent_paddings": (2, -1, 0)}, "latent_paddings must be an integer of at least 0, got -1"),
        ({"latent_paddings": (2, 1, 0), "order": "forward"}, "latent_paddings need order='inverted'"),
    ],
)
def test_bad_sampling_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**{"num_sections": 3, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": "gpu"}, "device must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        (
            {"precision": "bf16", "compute_dtype": "fp32"},
            "compute_dtype must be auto or bf16 with precision='bf16', got 'fp32'",
        ),
        (
            {"precision": "fp31"},
            "precision must be one of fp32, bf16, fp16, int8, int8-weight, fp8, nf4, got 'fp31'; did you mean 'fp32'",
        ),
    ],
)
def test_bad_engine_config_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(**change)


def test_unknown_options_raise() -> None:
    with pytest.raises(TypeError, match="step_count"):
        SamplingConfig(num_sections=1, step_count=3)  # type: ignore[call-arg]  # the point of the test
