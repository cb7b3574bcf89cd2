"""Which steps are skipped, and what a skipped step touches."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from isoframe.engine import ConfigError, Engine, EngineConfig, Event, Request, SamplingConfig, StepEvent
from isoframe.engine.companions.components import find_components
from isoframe.engine.demo import find_example
from isoframe.engine.families.framepack.transformer_config import TransformerConfig
from isoframe.engine.families.opening import open_transformer
from isoframe.engine.request.config import ORDERS
from isoframe.engine.sampling.magnitude import (
    find_ratios,
    measured_path,
    nearest_ratios,
    skip_schedule,
    write_measured,
)
from isoframe.engine.sampling.step_cache import MagCache, NoStepCache, TeaCache, make_step_cache

DATA = Path(__file__).resolve().parents[3] / "engine" / "data" / "magcache.json"
SHIPPED = {
    (entry["model"], entry["order"]): entry["ratios"]
    for entry in json.loads(DATA.read_text(encoding="utf-8"))
}
FRAMEPACK = SHIPPED["lllyasviel/FramePackI2V_HY", "inverted"]


def budget(threshold: float, max_skips: int, retention: float = 0.2, num_steps: int = 25) -> SamplingConfig:
    return SamplingConfig(
        num_sections=1, num_steps=num_steps, step_cache="magcache", step_cache_threshold=threshold,
        step_cache_max_skips=max_skips, step_cache_retention=retention,
    )  # fmt: skip


def pattern(ratios: list[float], sampling: SamplingConfig) -> str:
    return "".join("s" if is_skipped else "C" for is_skipped in skip_schedule(ratios, sampling))


def test_schedule_of_the_published_budget_is_the_published_one() -> None:
    assert pattern(FRAMEPACK, budget(0.10, 3)) == "CCCCCssCsCssCssCssCsssCsC"


@pytest.mark.parametrize(
    ("threshold", "max_skips", "num_computed"), [(0.10, 3, 12), (0.15, 4, 11), (0.06, 2, 14), (0.03, 1, 18)]
)
def test_published_budgets_compute_as_many_steps_as_published(
    threshold: float, max_skips: int, num_computed: int
) -> None:
    assert pattern(FRAMEPACK, budget(threshold, max_skips)).count("C") == num_computed


def test_default_budget_is_a_published_one() -> None:
    default = SamplingConfig(num_sections=1)
    assert pattern(FRAMEPACK, default) == pattern(FRAMEPACK, budget(0.15, 4))


RATIOS = st.lists(st.floats(0.5, 1.5), min_size=1, max_size=40)


@given(RATIOS, st.floats(0, 1), st.integers(1, 5), st.floats(0, 1), st.integers(1, 60))
def test_schedule_keeps_its_budget(
    ratios: list[float], threshold: float, max_skips: int, retention: float, num_steps: int
) -> None:
    sampling = budget(threshold, max_skips, retention, num_steps)
    text = pattern(ratios, sampling)
    assert len(text) == num_steps
    assert text[0] == "C"
    assert "s" not in text[: int(retention * num_steps)]
    assert "s" * (max_skips + 1) not in text
    used = nearest_ratios(ratios, num_steps)
    assert all(abs(1 - used[step]) <= 0.06 for step, letter in enumerate(text) if letter == "s")


@given(RATIOS, st.integers(2, 100))
def test_other_step_counts_take_the_nearest_ratio(ratios: list[float], num_steps: int) -> None:
    """As published: numpy's rounding of equally spaced positions."""
    positions = np.round(np.arange(num_steps) * ((len(ratios) - 1) / (num_steps - 1))).astype(int)
    assert nearest_ratios(ratios, num_steps) == [ratios[position] for position in positions]


def test_one_step_takes_the_last_ratio() -> None:
    assert nearest_ratios([1.0, 2.0, 3.0], 1) == [3.0]


@pytest.mark.parametrize("key", SHIPPED, ids="-".join)
def test_shipped_ratios_are_those_of_25_steps(key: tuple[str, str]) -> None:
    ratios = SHIPPED[key]
    assert len(ratios) == 25
    assert ratios[0] == 1
    assert all(0.7 < ratio < 1.3 for ratio in ratios)
    assert {"s", "C"} == set(pattern(ratios, budget(0.15, 4)))


class FakePass:
    """A step whose blocks add ``growth`` to tokens of ones; counts what is asked for."""

    def __init__(self, growth: float) -> None:
        self.growth = growth
        self.asked: list[str] = []

    @cached_property
    def first_input(self) -> Tensor:
        self.asked.append("first_input")
        return torch.ones(1)

    @property
    def noisy_tokens(self) -> Tensor:
        return torch.ones(1)

    def hidden(self) -> Tensor:
        self.asked.append("hidden")
        return self.noisy_tokens + self.growth

    def head(self, hidden: Tensor) -> Tensor:
        return hidden

    def reuse(self, residual: Tensor) -> Tensor:
        self.asked.append("reuse")
        return self.noisy_tokens + residual

    def compute(self) -> Tensor:
        return self.head(self.hidden())


def run(cache: Any, num_steps: int) -> tuple[list[FakePass], list[float], list[bool]]:
    passes = [FakePass(float(step)) for step in range(num_steps)]
    values, computed = [], []
    for step, step_pass in enumerate(passes):
        values.append(float(cache.velocity(step, step_pass)))
        computed.append(cache.was_computed)
    return passes, values, computed


def test_skipped_step_touches_nothing_but_the_noisy_tokens() -> None:
    schedule = (False, True, True, False, False, True)
    passes, values, computed = run(MagCache(schedule), 6)
    assert [step_pass.asked for step_pass in passes] == [
        ["hidden"], ["reuse"], ["reuse"], ["hidden"], ["hidden"], ["reuse"]
    ]  # fmt: skip
    # Ones plus the growth of the last computed step.
    assert values == [1, 1, 1, 4, 5, 5]
    assert computed == [not is_skipped for is_skipped in schedule]


def test_schedules_are_known_before_the_first_step() -> None:
    sampling = budget(0.10, 3)
    assert make_step_cache(sampling, FRAMEPACK).schedule == skip_schedule(FRAMEPACK, sampling)
    assert NoStepCache(3).schedule == (False, False, False)
    assert TeaCache(3, 0.15).schedule is None


def test_magcache_without_ratios_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the magnitude ratios of the checkpoint, got None"):
        make_step_cache(budget(0.10, 3))


@pytest.fixture(scope="module")
def demo_config() -> TransformerConfig:
    return open_transformer(find_components("demo").transformer).config


def find(config: TransformerConfig, cache_dir: Path, **changes: Any) -> tuple[float, ...]:
    return find_ratios(
        config,
        **{"order": "forward", "model": "my model", "model_hash": "abc", "cache_dir": cache_dir, **changes},
    )


@pytest.mark.parametrize("order", ORDERS)
def test_demo_model_has_ratios(demo_config: TransformerConfig, order: str, tmp_path: Path) -> None:
    assert find(demo_config, tmp_path, order=order) == tuple(SHIPPED["demo", order])


def test_measured_ratios_come_before_the_shipped_ones(demo_config: TransformerConfig, tmp_path: Path) -> None:
    write_measured(measured_path(tmp_path, "abc", "forward"), [1.0, 0.9], model="m", source="s")
    assert find(demo_config, tmp_path) == (1.0, 0.9)
    assert find(demo_config, tmp_path, order="inverted") == tuple(SHIPPED["demo", "inverted"])
    assert find(demo_config, tmp_path, model_hash="def") == tuple(SHIPPED["demo", "forward"])


@pytest.mark.parametrize(
    "content", ["", "{}", '{"ratios": []}', '{"ratios": ["a"]}', '{"ratios": [1.0, -1]}']
)
def test_damaged_ratios_are_named(demo_config: TransformerConfig, content: str, tmp_path: Path) -> None:
    path = measured_path(tmp_path, "abc", "forward")
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ConfigError, match=f"magnitude ratios in {path} .*; delete the file"):
        find(demo_config, tmp_path)


def test_checkpoint_without_ratios_names_the_command(demo_config: TransformerConfig, tmp_path: Path) -> None:
    other = TransformerConfig(**{**_fields(demo_config), "num_layers": 3})
    command = "isoframe bench magcache --model 'my model' --order forward"
    with pytest.raises(ConfigError, match=f"there are none; measure them with: {command}"):
        find(other, tmp_path)


def _fields(config: TransformerConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine.load("demo", config=EngineConfig(cache_dir=tmp_path_factory.mktemp("cache"), device="cpu"))


def run_demo(engine: Engine, **options: Any) -> tuple[Tensor, str]:
    """Frames of a short video, and which steps were computed."""
    image, prompt = find_example(None)
    events: list[Event] = []
    request = Request(image=str(image), prompt=prompt, seconds=1.2, **options)
    frames = torch.cat([section.frames for section in engine.generate(request, on_event=events.append)])
    return frames, "".join(
        "C" if event.is_computed else "s" for event in events if isinstance(event, StepEvent)
    )


@pytest.mark.parametrize("order", ORDERS)
def test_teacache_decides_on_the_demo_model_as_it_always_did(engine: Engine, order: str) -> None:
    _, decisions = run_demo(engine, order=order, step_cache="teacache")
    assert decisions == "CssCssCssCssCssCssCsCsCsC"


@pytest.mark.parametrize("order", ORDERS)
def test_magcache_skips_its_schedule_and_keeps_the_demo_video(engine: Engine, order: str) -> None:
    frames, decisions = run_demo(engine, order=order, step_cache="magcache")
    schedule = pattern(SHIPPED["demo", order], budget(0.15, 4))
    assert decisions == schedule == "CCCCCsssCssCssCssCCCCCCCC"
    expected, _ = run_demo(engine, order=order)
    error = (frames.float() - expected.float()).square().mean()
    assert 10 * torch.log10(255**2 / error) >= 50
