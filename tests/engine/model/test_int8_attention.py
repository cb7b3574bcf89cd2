from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from isoframe.engine import Engine, EngineConfig, Request
from isoframe.engine.demo import find_example
from isoframe.engine.model import attention as module
from isoframe.engine.model.attention import INT8_REQUIREMENTS, SDPA_ATTENTION, BlockRows, Int8Attention
from isoframe.engine.model.attention_backends import AttentionShape
from isoframe.engine.model.attention_choice import CANDIDATES, AttentionChoice

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HEADS, HEAD_DIM, NUM_TOKENS, NUM_LATENT = 2, 64, 203, 150
WIDTH = HEADS * HEAD_DIM
MAX_ERROR = {"int8": 0.03, "int8-fp8": 0.06}


def projection(offset: float = 0.0) -> tuple[Tensor, ...]:
    """qkv [1, N, 3, H, K] whose keys share ``offset`` in one channel, norm weights and rotary tables."""
    qkv = torch.randn(1, NUM_TOKENS, 3, HEADS, HEAD_DIM)
    qkv[:, :, 1, :, 9] += offset
    # The norm divides by what is shared, too; the keys still differ by about one.
    q_norm, k_norm = torch.randn(2, 2, HEAD_DIM) / 4 + 1
    k_norm *= (1 + offset**2 / HEAD_DIM) ** 0.5
    # Slow rotations: what the keys share survives them.
    angles = torch.rand(NUM_LATENT, HEAD_DIM // 2) * 0.1
    return qkv, q_norm, k_norm, angles.cos(), angles.sin()


def attend(
    attention: object, arguments: tuple[Tensor, ...], rows: slice = slice(0, NUM_TOKENS), block: int = 0
) -> Tensor:
    out = torch.full((1, rows.stop - rows.start, WIDTH + 7), torch.nan)
    block_rows = BlockRows(*arguments, out[:, :, :WIDTH], rows, block)
    attention.attend(block_rows)  # type: ignore[attr-defined]  # any SelfAttention
    assert out[:, :, WIDTH:].isnan().all()
    return out[:, :, :WIDTH]


def error(actual: Tensor, arguments: tuple[Tensor, ...], rows: slice = slice(0, NUM_TOKENS)) -> float:
    """Relative RMS distance from attention in fp32."""
    expected = attend(SDPA_ATTENTION, arguments, rows)
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("rows", [slice(0, NUM_TOKENS), slice(77, 150)], ids=["all", "some"])
@pytest.mark.parametrize("name", MAX_ERROR)
def test_int8_attention_is_near_the_exact_one(name: str, rows: slice) -> None:
    arguments = projection()
    attention = Int8Attention(name)
    assert error(attend(attention, arguments, rows), arguments, rows) <= MAX_ERROR[name]
    assert (attention.name, attention.exactness) == (name, "approximate")


def test_what_all_keys_share_costs_no_accuracy() -> None:
    """Without the mean taken out, the shared part would use up most of the 8 bits."""
    arguments = projection(offset=50.0)
    attention = Int8Attention()
    assert error(attend(attention, arguments), arguments) <= MAX_ERROR["int8"]
    attention._key_means[0].zero_()
    assert error(attend(attention, arguments), arguments) > 3 * MAX_ERROR["int8"]


def test_mean_of_the_last_step_serves_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Tensor] = []
    quantize = module.qk_norm_rope_int8

    def counted(*arguments: Tensor) -> tuple[Tensor, ...]:
        calls.append(arguments[-1].clone())
        return quantize(*arguments)

    monkeypatch.setattr(module, "qk_norm_rope_int8", counted)
    first, second = projection(offset=5.0), projection(offset=5.0)
    attention = Int8Attention()
    attend(attention, first)
    assert len(calls) == 2
    attend(attention, second)
    attend(attention, first, block=1)
    assert len(calls) == 5
    # Each pass after the first of a block takes out the mean that the one before found.
    mean = quantize(first[0][:, :, :2], *first[1:], calls[0])[4]
    assert torch.equal(calls[0], torch.zeros(HEADS, HEAD_DIM))
    assert torch.equal(calls[1], mean)
    assert torch.equal(calls[2], mean)
    assert torch.equal(calls[3], torch.zeros(HEADS, HEAD_DIM))
    assert torch.equal(calls[4], mean)


def test_section_starts_afresh() -> None:
    first, second = projection(offset=5.0), projection(offset=5.0)
    attention = Int8Attention()
    attend(attention, first)
    attention.reset()
    assert torch.equal(attend(attention, second), attend(Int8Attention(), second))


def test_output_may_lie_over_the_queries() -> None:
    arguments = projection()
    expected = attend(Int8Attention(), arguments)
    out = arguments[0][:, :, 0].flatten(2)
    assert out.data_ptr() == arguments[0].data_ptr()
    Int8Attention().attend(BlockRows(*arguments, out, slice(0, NUM_TOKENS), 0))
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("index", "device", "capability", "head_dim", "message"),
    [
        (0, CPU, 0, 64, None),
        (0, CUDA, 80, 128, None),
        (1, CUDA, 120, 128, None),
        (0, CUDA, 75, 128, "attention 'int8' needs compute capability 8.0, got 7.5"),
        (1, CUDA, 86, 128, "attention 'int8-fp8' needs compute capability 8.9, got 8.6"),
        (0, CPU, 0, 96, "attention 'int8' does not take heads of 96 channels; use attention='sdpa'"),
    ],
)
def test_int8_names_its_obstacle(
    index: int, device: torch.device, capability: int, head_dim: int, message: str | None
) -> None:
    shape = AttentionShape(num_tokens=9, num_heads=2, head_dim=head_dim, dtype=torch.bfloat16)
    found = INT8_REQUIREMENTS[index].obstacle(shape, device, lambda _: capability)
    assert found is None if message is None else found.startswith(message)


def test_auto_may_choose_int8_in_an_int8_job(tmp_path: Path) -> None:
    shape = AttentionShape(num_tokens=300, num_heads=2, head_dim=128, dtype=torch.bfloat16)
    candidates = {name: CANDIDATES[name] for name in ("sdpa", "int8", "int8-fp8")}
    seconds = iter((3.0, 2.0, 1.0))

    def measure(call: Callable[[], object]) -> float:
        return next(seconds)

    choice = AttentionChoice(
        name="auto", precision="int8", device=CPU, cache_dir=tmp_path, candidates=candidates
    )
    assert choice.fastest(shape, measure) == "int8-fp8"
    assert replace(choice, precision="bf16").fastest(shape, measure) == "sdpa"


def test_int8_attention_keeps_the_demo_video_and_repeats_it() -> None:
    image, prompt = find_example(None)
    request = Request(
        image=str(image), prompt=prompt, seconds=0.8, num_steps=6, latent_window_size=3, size=(64, 64)
    )

    def frames(attention: str, times: int = 1) -> list[Tensor]:
        engine = Engine.load("demo", config=EngineConfig(device="cpu", attention=attention))
        return [
            torch.cat([section.frames for section in engine.generate(request)]).float() for _ in range(times)
        ]

    (expected,) = frames("sdpa")
    first, again = frames("int8", times=2)
    assert 10 * torch.log10(255**2 / (first - expected).square().mean()) >= 50
    assert not torch.equal(first, expected)
    assert torch.equal(again, first)
