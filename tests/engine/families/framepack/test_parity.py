"""The packed transformer against diffusers' class and, where that cannot run, against a plain reference."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from plain_transformer import plain_forward
from tiny_models import HISTORY_GROUPS, forward_inputs, relative_error, saved_model, tiny_model
from torch import Tensor

from isoframe.engine.interfaces.diffusers import load_transformer

TOLERANCE = 1e-5

# 8 x 12 tokens need no padding, 6 x 10 pad the 4x group, the odd grids pad both groups on both axes.
GRIDS = ((8, 12), (6, 10), (11, 13), (5, 7), (1, 3))
LAYOUTS = [("inverted", gap) for gap in range(4)] + [("forward", 0)]
WIDE_HEAD = {"num_attention_heads": 1, "attention_head_dim": 128, "rope_axes_dim": (16, 56, 56)}
FEW_BLOCKS = {"num_attention_heads": 3, "num_layers": 1, "num_single_layers": 1, "num_refiner_layers": 1}


class Pair:
    """One checkpoint, loaded by diffusers' class and by the engine."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.theirs = saved_model(folder, **options)
        self.ours = load_transformer(folder, dtype=torch.float32, device="cpu")

    def error(self, inputs: dict[str, Tensor]) -> float:
        with torch.no_grad():
            expected = self.theirs(**inputs).sample
        actual = self.ours(**inputs).sample
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        return relative_error(actual, expected)

    def plain(self, inputs: dict[str, Tensor]) -> Tensor:
        return plain_forward(self.theirs.state_dict(), self.theirs.config, **inputs)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("transformer"))


@pytest.mark.parametrize("layout", LAYOUTS, ids=[f"{order}-{gap}" for order, gap in LAYOUTS])
@pytest.mark.parametrize("grid", GRIDS, ids=[f"{h}x{w}" for h, w in GRIDS])
def test_equals_diffusers_on_every_grid_and_layout(
    pair: Pair, grid: tuple[int, int], layout: tuple[str, int]
) -> None:
    order, gap = layout
    inputs = forward_inputs(grid, order=order, gap=gap, num_valid_text=(7,), num_text=16)
    assert pair.error(inputs) <= TOLERANCE


@pytest.mark.parametrize("num_image_tokens", [1, 9])
@pytest.mark.parametrize(("valid", "length"), [(1, 1), (1, 32), (2, 3), (17, 32), (32, 32)])
def test_equals_diffusers_for_any_text(pair: Pair, valid: int, length: int, num_image_tokens: int) -> None:
    inputs = forward_inputs(
        (5, 7), num_valid_text=(valid,), num_text=length, num_image_tokens=num_image_tokens, seed=valid
    )
    assert pair.error(inputs) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32], ids=str)
def test_takes_masks_that_are_not_boolean(pair: Pair, dtype: torch.dtype) -> None:
    inputs = forward_inputs((2, 3), num_valid_text=(3,), num_text=6)
    inputs["encoder_attention_mask"] = inputs["encoder_attention_mask"].to(dtype)
    assert pair.error(inputs) <= TOLERANCE


def test_padding_tokens_change_nothing(pair: Pair) -> None:
    inputs = forward_inputs((5, 7), num_valid_text=(4,), num_text=9)
    before = pair.ours(**inputs).sample
    inputs["encoder_hidden_states"][:, 4:] = 1e3
    assert relative_error(pair.ours(**inputs).sample, before) <= 1e-6


@pytest.mark.parametrize("window", [1, 2, 3, 12])
def test_equals_diffusers_for_any_window(pair: Pair, window: int) -> None:
    assert pair.error(forward_inputs((3, 5), window=window, gap=1)) <= TOLERANCE


@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_batch_with_mask_equals_diffusers(pair: Pair, order: str) -> None:
    """Samples of other text length and other timestep; every output row is valid, padding is in the text alone."""
    inputs = forward_inputs((6, 5), num_valid_text=(1, 11, 32), num_text=32, order=order, gap=2)
    assert pair.error(inputs) <= TOLERANCE


@pytest.mark.parametrize("options", [WIDE_HEAD, FEW_BLOCKS], ids=["head-dim-128", "three-heads"])
def test_equals_diffusers_for_other_sizes(tmp_path: Path, options: dict[str, Any]) -> None:
    pair = Pair(tmp_path, seed=5, **options)
    for order, grid in (("inverted", (5, 6)), ("forward", (11, 13))):
        assert pair.error(forward_inputs(grid, order=order, gap=3)) <= TOLERANCE


def test_equals_diffusers_without_guidance_embedder(tmp_path: Path) -> None:
    pair = Pair(tmp_path, seed=6, guidance_embeds=False)
    inputs = forward_inputs((5, 7))
    del inputs["guidance"]
    assert pair.error(inputs) <= TOLERANCE


def test_equals_diffusers_where_indices_are_left_out(pair: Pair) -> None:
    """``None`` counts from zero; diffusers' class means the same and fails on its own default."""
    inputs = forward_inputs((5, 7), gap=1)
    inputs["indices_latents"] = torch.arange(9)
    expected = pair.ours(**inputs).sample
    inputs["indices_latents"] = None
    assert torch.equal(pair.ours(**inputs).sample, expected)


def test_returns_a_tuple_on_request(pair: Pair) -> None:
    inputs = forward_inputs((2, 3))
    (sample,) = pair.ours(**inputs, return_dict=False)
    assert torch.equal(sample, pair.ours(**inputs).sample)


def test_result_may_be_changed_in_place(pair: Pair) -> None:
    """A sampler of one's own may write ``velocity.mul_(dt)``, as with diffusers' class under ``no_grad``."""
    (sample,) = pair.ours(**forward_inputs((2, 3)), return_dict=False)
    doubled = sample + sample
    assert torch.equal(sample.mul_(2), doubled)


def test_takes_positional_arguments_as_diffusers(pair: Pair) -> None:
    inputs = forward_inputs((2, 3))
    names = itertools.islice(pair.theirs.forward.__wrapped__.__code__.co_varnames, 1, 1 + len(inputs))
    values = [inputs[name] for name in names]
    assert len(values) == len(inputs)
    assert torch.equal(pair.ours(*values)[0], pair.ours(**inputs)[0])


def test_plain_reference_equals_diffusers(pair: Pair) -> None:
    for grid, valid in (((6, 10), (5,)), ((5, 7), (2, 9))):
        inputs = forward_inputs(grid, num_valid_text=valid, num_text=12, gap=2)
        with torch.no_grad():
            assert relative_error(pair.plain(inputs), pair.theirs(**inputs).sample) <= TOLERANCE


def names(missing: set[str]) -> str:
    """In one order, so that every process that runs the tests gives a test one name."""
    return "-".join(sorted(missing))


@pytest.mark.parametrize("grid", [(5, 7), (6, 10)], ids=str)
@pytest.mark.parametrize("missing", [set(HISTORY_GROUPS) - {kept} for kept in HISTORY_GROUPS], ids=names)
def test_one_history_group_alone_equals_plain_reference(
    pair: Pair, missing: set[str], grid: tuple[int, int]
) -> None:
    check_missing(pair, missing, grid)


@pytest.mark.parametrize("missing", [*({group} for group in HISTORY_GROUPS), set(HISTORY_GROUPS)], ids=names)
def test_missing_history_groups_equal_plain_reference(pair: Pair, missing: set[str]) -> None:
    check_missing(pair, missing, (5, 7))


def check_missing(pair: Pair, missing: set[str], grid: tuple[int, int]) -> None:
    inputs = forward_inputs(grid, gap=1)
    without = dict(inputs)
    for group in missing:
        without[group] = without[f"indices_{group}"] = None
    expected = pair.plain(without)
    assert relative_error(expected, pair.plain(inputs)) > 1e-3
    assert relative_error(pair.ours(**without).sample, expected) <= TOLERANCE


def test_history_without_indices_is_left_out(pair: Pair) -> None:
    """As published: a group takes part only with its latents and its indices."""
    inputs = forward_inputs((5, 7))
    without = inputs | {"latents_history_4x": None, "indices_latents_history_4x": None}
    for half in ("latents_history_4x", "indices_latents_history_4x"):
        assert torch.equal(pair.ours(**inputs | {half: None}).sample, pair.ours(**without).sample)


@pytest.mark.parametrize("num_history", [1, 3, 5])
def test_history_of_other_lengths_equals_diffusers(pair: Pair, num_history: int) -> None:
    """Frames that do not fill the last patch are replicated in latents and phases alike."""
    inputs = forward_inputs((5, 7))
    for group in ("latents_history_2x", "latents_history_4x"):
        inputs[group] = torch.randn(1, 16, num_history, 10, 14)
        inputs[f"indices_{group}"] = torch.arange(num_history) + inputs[f"indices_{group}"][0]
    assert pair.error(inputs) <= TOLERANCE


def without_information(name: str, weight: Tensor) -> Tensor:
    """What a loader that ignores the tensor would leave in its place."""
    return (
        torch.ones_like(weight) if weight.dim() == 1 and name.endswith("weight") else torch.zeros_like(weight)
    )


def test_every_tensor_of_the_checkpoint_matters() -> None:
    """An engine that left one tensor out could not pass the tests above: they allow a thirtieth of its effect.

    The refiner's key bias adds the same number to all scores of a query, and softmax forgets it.
    """
    model = tiny_model()
    inputs = forward_inputs((3, 5))
    weights = model.state_dict()
    expected = model(**inputs).sample
    effects = {}
    for name, weight in weights.items():
        original = weight.clone()
        weight.copy_(without_information(name, weight))
        effects[name] = relative_error(model(**inputs).sample, expected)
        weight.copy_(original)
    cancelled = {name for name in weights if "refiner" in name and name.endswith("to_k.bias")}
    assert len(cancelled) == 2
    assert max(effects[name] for name in cancelled) <= TOLERANCE
    assert min(effect for name, effect in effects.items() if name not in cancelled) >= 30 * TOLERANCE


def rounded_to_bf16(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.bfloat16() if x.is_floating_point() else x for name, x in inputs.items()}


def rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


@pytest.mark.parametrize(
    ("grid", "order", "gap"), [((8, 12), "inverted", 0), ((6, 10), "inverted", 3), ((11, 13), "forward", 0)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_bf16_is_as_close_to_fp32_arithmetic_as_diffusers(
    tmp_path: Path, seed: int, grid: tuple[int, int], order: str, gap: int
) -> None:
    """Same bf16 weights, same rounded inputs and scalars; only the arithmetic between differs."""
    model = tiny_model(seed).bfloat16()
    model.save_pretrained(tmp_path)
    ours = load_transformer(tmp_path, dtype=torch.bfloat16, device="cpu")
    inputs = rounded_to_bf16(forward_inputs(grid, order=order, gap=gap, seed=seed))

    actual = ours(**inputs).sample
    with torch.no_grad():
        theirs = model(**inputs).sample
        in_fp32 = {name: x.float() if x.is_floating_point() else x for name, x in inputs.items()}
        exact = plain_forward({k: v.float() for k, v in model.state_dict().items()}, model.config, **in_fp32)
    assert actual.dtype == theirs.dtype == torch.bfloat16
    assert rms(theirs - exact) > 1e-3 * rms(exact)
    assert rms(actual - exact) <= 1.1 * rms(theirs - exact)


CACHED_INPUTS = (
    "encoder_hidden_states",
    "encoder_attention_mask",
    "pooled_projections",
    "image_embeds",
    "indices_latents",
    *HISTORY_GROUPS,
    *(f"indices_{group}" for group in HISTORY_GROUPS),
)


def change_in_place(name: str, x: Tensor) -> None:
    """Another valid value for the argument."""
    if x.dtype == torch.bool:
        x[:, -1] = ~x[:, -1]
    elif name.startswith("indices"):
        x.add_(1)
    else:
        x.mul_(-0.5)


@pytest.mark.parametrize("name", [*CACHED_INPUTS, "hidden_states", "timestep", "guidance"])
@pytest.mark.parametrize("is_caching", [False, True], ids=["recomputing", "in-section"])
def test_in_place_change_of_any_input_is_noticed(pair: Pair, name: str, is_caching: bool) -> None:
    ours = load_transformer(pair.folder)
    inputs = forward_inputs((2, 3), num_valid_text=(5,))
    if is_caching:
        ours.begin_section(3)
    before = ours(**inputs).sample
    assert torch.equal(ours(**inputs).sample, before)
    change_in_place(name, inputs[name])
    after = ours(**inputs).sample
    assert relative_error(after, before) > 1e-4
    assert relative_error(after, pair.plain(inputs)) <= TOLERANCE


@pytest.mark.parametrize("name", [*CACHED_INPUTS, "hidden_states", "timestep", "guidance"])
def test_another_tensor_in_a_section_is_noticed(pair: Pair, name: str) -> None:
    ours = load_transformer(pair.folder)
    inputs = forward_inputs((2, 3), num_valid_text=(5,))
    ours.begin_section(3)
    ours(**inputs)
    inputs[name] = inputs[name].clone()
    change_in_place(name, inputs[name])
    assert relative_error(ours(**inputs).sample, pair.plain(inputs)) <= TOLERANCE


def test_section_with_two_branches_and_many_steps_equals_plain_reference(pair: Pair) -> None:
    """Conditional and unconditional calls alternate, as in true guidance, over two sections."""
    ours = load_transformer(pair.folder)
    branches = [forward_inputs((2, 3), num_valid_text=(valid,), seed=valid) for valid in (3, 6)]
    for section in range(2):
        ours.begin_section(4)
        history = forward_inputs((2, 3), order="inverted", gap=1 - section, seed=section)
        shared = {name: x for name, x in history.items() if "latents" in name}
        for timestep in (1000.0, 900.0, 640.0, 220.0):
            for branch in branches:
                inputs = branch | shared | {"timestep": torch.tensor([timestep])}
                inputs["hidden_states"] = torch.randn(1, 16, 9, 4, 6)
                assert relative_error(ours(**inputs).sample, pair.plain(inputs)) <= TOLERANCE


def test_section_computes_conditioning_once(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = load_transformer(pair.folder)
    counts = {
        name: count_calls(monkeypatch, ours.transformer, name) for name in ("pack_section", "prepare_job")
    }
    inputs = forward_inputs((2, 3))
    for _ in range(3):
        ours(**inputs)
    assert {name: calls() for name, calls in counts.items()} == {"pack_section": 3, "prepare_job": 3}
    ours.begin_section(3)
    for _ in range(3):
        ours(**inputs)
    assert {name: calls() for name, calls in counts.items()} == {"pack_section": 4, "prepare_job": 4}


def test_a_batch_with_two_branches_keeps_every_sample_in_the_cache(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = load_transformer(pair.folder)
    counts = {
        name: count_calls(monkeypatch, ours.transformer, name) for name in ("pack_section", "prepare_job")
    }
    branches = [forward_inputs((2, 3), num_valid_text=(4, 2, 5), seed=seed) for seed in (1, 2)]
    ours.begin_section(2)
    for timestep in (1000.0, 500.0, 500.0, 1000.0):
        for branch in branches:
            ours(**branch | {"timestep": torch.full((3,), timestep)})
    # Two branches of three samples; two timesteps.
    assert {name: calls() for name, calls in counts.items()} == {"pack_section": 6, "prepare_job": 12}


def count_calls(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> Callable[[], int]:
    """Wrap a method; the returned function tells how often it ran."""
    original = getattr(owner, name)
    calls = itertools.count()
    num_calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_calls
        num_calls = next(calls) + 1
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return lambda: num_calls
