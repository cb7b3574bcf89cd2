"""The comparison itself, at the size of the demo model: it agrees, it counts tokens, it times nothing wrong."""

import dataclasses

import pytest

from isoframe.bench.peers.peer_step import CASES, compare_steps
from isoframe.engine import IsoframeError


def test_both_steps_agree_and_are_timed() -> None:
    result = compare_steps(CASES["demo-fp32"], repeats=1)
    assert result.error <= 1e-5
    # 9 noisy and 2 clean frames of 4 x 4 tokens, one 2x frame of 2 x 2, four 4x frames of one.
    assert CASES["demo-fp32"].shape.num_latent_tokens == 11 * 16 + 4 + 4
    assert len(result.diffusers_times) == len(result.isoframe_times) == 1
    assert result.ratio == pytest.approx(result.isoframe_times[0] / result.diffusers_times[0])


def test_results_that_differ_are_not_timed() -> None:
    case = dataclasses.replace(CASES["demo-fp32"], max_error=0.0)
    with pytest.raises(IsoframeError, match=r"demo-fp32: the results .* differ by .*nothing was timed"):
        compare_steps(case, repeats=1)
