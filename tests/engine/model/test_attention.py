import importlib.util
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from triton.errors import TritonError

from isoframe.engine import ConfigError, DeviceError, EngineConfig
from isoframe.engine.model.attention import BlockRows, FloatAttention, SelfAttention
from isoframe.engine.model.attention_backends import (
    BACKENDS,
    AttentionBackend,
    AttentionShape,
    Requirements,
    has_fused_kernel,
    sdpa_obstacle,
)
from isoframe.engine.model.attention_choice import (
    CANDIDATES,
    AttentionChoice,
    Candidate,
)
from isoframe.engine.request.config import ATTENTIONS
from isoframe.kernels import KERNELS

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HEADS, HEAD_DIM = 3, 64
SHAPE = AttentionShape(num_tokens=41, num_heads=HEADS, head_dim=HEAD_DIM, dtype=torch.float32)
LONG = AttentionShape(num_tokens=18_261, num_heads=24, head_dim=128, dtype=torch.bfloat16)
LIBRARIES = {
    "flash-attn": ("flash_attn", "flash_attn_func"),
    "flash-attn-3": ("flash_attn_interface", "flash_attn_func"),
    "sageattention": ("sageattention", "sageattn"),
    "xformers": ("xformers.ops", "memory_efficient_attention"),
}


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Softmax attention in [B, N, H, K], fp32, by its formula."""
    scores = torch.einsum("bmhk,bnhk->bhmn", q.float(), k.float()) * scale
    return torch.einsum("bhmn,bnhk->bmhk", scores.softmax(-1), v.float()).to(q.dtype)


def flash(
    q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None
) -> Tensor:
    assert dropout_p == 0
    assert softmax_scale is not None
    return plain(q, k, v, softmax_scale)


def flash_with_lse(
    q: Tensor, k: Tensor, v: Tensor, softmax_scale: float | None = None
) -> tuple[Tensor, Tensor]:
    assert softmax_scale is not None
    return plain(q, k, v, softmax_scale), torch.full((1,), torch.nan)


def sage(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tensor_layout: str = "HND",
    is_causal: bool = False,
    sm_scale: float | None = None,
) -> Tensor:
    """Subtracts the mean from the caller's k, as version 1.0.6 does."""
    assert (tensor_layout, is_causal) == ("NHD", False)
    assert sm_scale is not None
    k -= k.mean(dim=1, keepdim=True)
    return plain(q, k, v, sm_scale)


def xformers(
    q: Tensor, k: Tensor, v: Tensor, attn_bias: Any = None, p: float = 0.0, scale: float | None = None
) -> Tensor:
    assert (attn_bias, p) == (None, 0.0)
    assert scale is not None
    return plain(q, k, v, scale)


FAKES: dict[str, Callable[..., Any]] = {
    "flash-attn": flash, "flash-attn-3": flash_with_lse, "sageattention": sage, "xformers": xformers
}  # fmt: skip


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[tuple[Tensor, ...]]]:
    """Installs a stand-in for a backend's library; returns the list of the (q, k, v) that it is given."""

    def put(backend: str) -> list[tuple[Tensor, ...]]:
        module, function = LIBRARIES[backend]
        calls: list[tuple[Tensor, ...]] = []

        def called(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
            calls.append((q, k, v))
            return FAKES[backend](q, k, v, **options)

        fake = ModuleType(module)
        setattr(fake, function, called)
        parent, _, child = module.rpartition(".")
        if parent:
            package = ModuleType(parent)
            setattr(package, child, fake)
            monkeypatch.setitem(sys.modules, parent, package)
        monkeypatch.setitem(sys.modules, module, fake)
        return calls

    return put


def draw(dtype: torch.dtype = torch.float32, num_queries: int = 17) -> tuple[Tensor, Tensor, Tensor]:
    """q and k as the norm leaves them, v as a view of a fused projection."""
    q, k = torch.randn(2, 1, SHAPE.num_tokens, HEADS, HEAD_DIM, dtype=dtype)
    v = torch.randn(1, SHAPE.num_tokens, 3, HEADS, HEAD_DIM, dtype=dtype)[:, :, 2]
    return q[:, 11 : 11 + num_queries], k, v


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", BACKENDS)
def test_backend_is_softmax_attention(name: str, dtype: torch.dtype, install: Callable[[str], Any]) -> None:
    if name in FAKES:
        install(name)
    q, k, v = draw(dtype)
    expected = plain(q.float(), k.float(), v.float(), HEAD_DIM**-0.5).flatten(2)
    result = BACKENDS[name](q, k, v)
    assert result.shape == (1, 17, HEADS * HEAD_DIM)
    assert result.dtype == dtype
    assert (result.float() - expected).abs().max() <= (2e-6 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("name", FAKES)
def test_libraries_get_tokens_before_heads_with_contiguous_channels(
    name: str, install: Callable[[str], list[tuple[Tensor, ...]]]
) -> None:
    calls = install(name)
    q, k, v = draw(torch.bfloat16)
    BACKENDS[name](q, k, v)
    (given,) = calls
    assert [tuple(x.shape) for x in given] == [tuple(x.shape) for x in (q, k, v)]
    assert all(x.stride(-1) == 1 and x.dtype == torch.bfloat16 for x in given)


@pytest.mark.parametrize("name", BACKENDS)
def test_backend_changes_no_argument(name: str, install: Callable[[str], Any]) -> None:
    if name in FAKES:
        install(name)
    arguments = draw()
    copies = [x.clone() for x in arguments]
    BACKENDS[name](*arguments)
    assert all(map(torch.equal, arguments, copies))


def test_the_stand_in_for_sageattention_does_change_its_k() -> None:
    q, k, v = draw()
    before = k.clone()
    sage(q, k, v, tensor_layout="NHD", sm_scale=1.0)
    assert not torch.equal(k, before)


@pytest.mark.parametrize("name", FAKES)
def test_missing_library_is_named_with_its_pip_line(name: str, tmp_path: Path) -> None:
    module = LIBRARIES[name][0]
    if importlib.util.find_spec(module.partition(".")[0]) is not None:
        pytest.skip(f"{module} is installed")
    with pytest.raises(DeviceError, match=rf"'{name}' needs the module {module} .*: pip install"):
        AttentionChoice(name=name, precision="bf16", device=CUDA, cache_dir=tmp_path).make(LONG)


@pytest.mark.parametrize(
    ("shape", "device", "capability", "message"),
    [
        ({}, CPU, 80, "'lib' needs a CUDA device, got cpu; use attention='sdpa'"),
        ({"dtype": torch.float32}, CUDA, 80, "computes in 16 bit, got float32; use precision='bf16'"),
        ({"head_dim": 72}, CUDA, 80, "does not take heads of 72 channels"),
        ({}, CUDA, 75, r"needs compute capability 8\.0 to 9\.0, got 7\.5"),
        ({}, CUDA, 120, r"needs compute capability 8\.0 to 9\.0, got 12\.0"),
    ],
)
def test_library_names_its_obstacle(
    shape: dict[str, Any], device: torch.device, capability: int, message: str
) -> None:
    library = Requirements(name="lib", module="json", most=90, head_dims=(64, 128))
    asked = AttentionShape(
        **{"num_tokens": 9, "num_heads": 2, "head_dim": 128, "dtype": torch.bfloat16, **shape}
    )
    obstacle = library.obstacle(asked, device, lambda _: capability)
    assert obstacle is not None
    with pytest.raises(DeviceError, match=message):
        raise DeviceError(obstacle)


def test_library_with_all_it_needs_has_no_obstacle() -> None:
    library = Requirements(name="lib", module="json")
    assert library.obstacle(LONG, CUDA, lambda _: 89) is None


def test_unfused_scores_of_a_long_sequence_are_refused() -> None:
    obstacle = sdpa_obstacle(LONG, CUDA, has_fused_kernel=lambda *_: False)
    assert obstacle is not None
    assert "would need 29.8 GiB for the scores of 18261 tokens" in obstacle
    assert "use attention='flash-attn' (pip install flash-attn)" in obstacle


@pytest.mark.parametrize(
    ("shape", "device", "is_fused"),
    [(LONG, CUDA, True), (SHAPE, CUDA, False), (LONG, CPU, False)],
    ids=["fused", "short", "cpu"],
)
def test_torch_attention_runs_elsewhere(shape: AttentionShape, device: torch.device, is_fused: bool) -> None:
    assert sdpa_obstacle(shape, device, has_fused_kernel=lambda *_: is_fused) is None


def test_torch_answers_whether_it_has_a_fused_kernel() -> None:
    assert has_fused_kernel(LONG, CPU) is False


def test_every_name_of_the_configuration_has_an_attention() -> None:
    assert set(ATTENTIONS) == {"auto", *CANDIDATES}


def test_unknown_attention_suggests_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"attention must be one of auto, .*, got 'flash'; did you mean 'flash-"
    ):
        EngineConfig(attention="flash")


@pytest.mark.parametrize("name", ["auto", "sdpa"])
def test_cpu_takes_torch_without_measuring(name: str, tmp_path: Path) -> None:
    attention = AttentionChoice(name=name, precision="fp32", device=CPU, cache_dir=tmp_path).make(SHAPE)
    assert attention.name == "sdpa"
    assert list(tmp_path.iterdir()) == []


def projection(num_tokens: int = 41, num_latent_tokens: int = 30) -> tuple[Tensor, ...]:
    """qkv [1, N, 3, H, K], norm weights and rotary tables of one block."""
    qkv = torch.randn(1, num_tokens, 3, HEADS, HEAD_DIM)
    q_norm, k_norm = torch.randn(2, 2, HEAD_DIM) / 4 + 1
    angles = torch.rand(num_latent_tokens, HEAD_DIM // 2) * 50
    return qkv, q_norm, k_norm, angles.cos(), angles.sin()


@pytest.mark.parametrize("rows", [slice(0, 41), slice(13, 30)], ids=["all", "some"])
def test_float_attention_writes_its_rows_and_nothing_else(rows: slice) -> None:
    qkv, q_norm, k_norm, cos, sin = projection()
    q, k = KERNELS["qk_norm_rope"].reference(qkv[:, :, :2], q_norm, k_norm, cos, sin)
    expected = plain(q[:, rows], k, qkv[:, :, 2], HEAD_DIM**-0.5).flatten(2)
    wide = torch.full((1, rows.stop - rows.start, HEADS * HEAD_DIM + 7), torch.nan)
    attention = FloatAttention(BACKENDS["sdpa"])
    attention.attend(BlockRows(qkv, q_norm, k_norm, cos, sin, wide[:, :, : HEADS * HEAD_DIM], rows, block=0))
    assert (wide[:, :, : HEADS * HEAD_DIM] - expected).abs().max() <= 1e-5
    assert wide[:, :, HEADS * HEAD_DIM :].isnan().all()


def candidate(
    exactness: Any = "rounding", *, factor: float = 1.0, error: str = "", kind: type[Exception] = RuntimeError
) -> Candidate:
    """Torch's attention, its result multiplied by ``factor``; a failing one if there is an ``error`` of a ``kind``."""

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if error:
            raise kind(error)
        return BACKENDS["sdpa"].run(q, k, v) * factor

    backend = AttentionBackend(name="fake", exactness=exactness, run=run, obstacle=lambda *_: None)
    return Candidate(exactness=exactness, obstacle=backend.obstacle, make=lambda: FloatAttention(backend))


class Stopwatch:
    """Gives out times in turn, after one call of what is measured."""

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)

    def __call__(self, call: Callable[[], object]) -> float:
        call()
        return self.seconds.pop(0)


def choose(
    folder: Path,
    candidates: dict[str, Candidate],
    *seconds: float,
    precision: str = "bf16",
    num_tokens: int = 41,
) -> str:
    shape = AttentionShape(num_tokens=num_tokens, num_heads=2, head_dim=64, dtype=torch.float32)
    choice = AttentionChoice(
        name="auto", precision=precision, device=CPU, cache_dir=folder, candidates=candidates
    )
    return choice.fastest(shape, Stopwatch(*seconds))


def test_auto_takes_the_fastest_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="isoframe")
    assert choose(tmp_path, {"a": candidate(), "b": candidate(), "c": candidate()}, 3e-3, 1e-3, 2e-3) == "b"
    (record,) = caplog.records
    assert record.getMessage() == (
        "attention: b for 41 tokens (measured now: a 3.00 ms, b 1.00 ms, c 2.00 ms)"
    )


def test_auto_measures_a_shape_once(tmp_path: Path) -> None:
    candidates = {"a": candidate(), "b": candidate()}
    assert choose(tmp_path, candidates, 2e-3, 1e-3) == "b"
    # A stopwatch without times fails if anything is measured.
    assert choose(tmp_path, candidates) == "b"
    assert choose(tmp_path, candidates, num_tokens=57) == "b"
    assert choose(tmp_path, candidates, 1e-3, 2e-3, num_tokens=1025) == "a"


def test_auto_measures_again_when_the_candidates_change(tmp_path: Path) -> None:
    candidates = {"a": candidate(), "b": candidate()}
    choose(tmp_path, candidates, 2e-3, 1e-3)
    assert choose(tmp_path, {**candidates, "c": candidate()}, 3e-3, 2e-3, 1e-3) == "c"


@pytest.mark.parametrize("content", ["", "[1]", '{"z": 1.0}', '{"a": "fast"}', "{}"])
def test_damaged_choice_is_measured_again(
    content: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    candidates = {"a": candidate(), "b": candidate()}
    choose(tmp_path, candidates, 2e-3, 1e-3)
    (path,) = (tmp_path / "attention").iterdir()
    path.write_text(content)
    assert choose(tmp_path, candidates, 1e-3, 2e-3) == "a"
    assert "is damaged: measuring again" in caplog.text
    assert json.loads(path.read_text()) == {"a": 1e-3, "b": 2e-3}


def test_folder_that_cannot_be_written_costs_only_the_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    assert choose(blocked, {"a": candidate(), "b": candidate()}, 2e-3, 1e-3) == "b"
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize(
    ("precision", "name"), [("bf16", "a"), ("fp32", "a"), ("int8-weight", "a"), ("int8", "b")]
)
def test_approximate_attention_takes_part_in_int8_alone(precision: str, name: str, tmp_path: Path) -> None:
    candidates = {"a": candidate(), "b": candidate("approximate"), "c": candidate()}
    seconds = (2e-3, 1e-3, 3e-3) if precision == "int8" else (2e-3, 3e-3)
    assert choose(tmp_path, candidates, *seconds, precision=precision) == name


def test_auto_leaves_out_what_is_wrong_or_fails(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    candidates = {
        "good": candidate(),
        "wrong": candidate(factor=1.05),
        "nan": candidate(factor=torch.nan),
        "failing": candidate(error="Unsupported CUDA architecture"),
        # Triton's errors are of no kind but their own.
        "compiled": candidate(error="out of resource", kind=TritonError),
    }
    assert choose(tmp_path, candidates, 4e-3, 1e-3, 2e-3) == "good"
    assert [record.getMessage() for record in caplog.records] == [
        "attention: wrong is left out, its relative error is 0.05",
        "attention: nan is left out, its relative error is nan",
        "attention: failing is left out, it fails here: Unsupported CUDA architecture",
        "attention: compiled is left out, it fails here: out of resource",
    ]


def test_a_candidate_that_lacked_memory_is_tried_again_another_time(tmp_path: Path) -> None:
    full = {"sdpa": candidate(), "b": candidate(error="CUDA out of memory")}
    assert choose(tmp_path, full, 2.0) == "sdpa"
    assert choose(tmp_path, {"sdpa": candidate(), "b": candidate()}, 2.0, 1.0) == "b"
    with pytest.raises(torch.OutOfMemoryError):
        choose(tmp_path / "other", dict.fromkeys("ab", candidate(error="CUDA out of memory")))


def test_auto_without_anything_that_runs_says_what_would(tmp_path: Path) -> None:
    blocked = Candidate(
        exactness="exact", obstacle=lambda *_: "no kernel; use attention='xformers'", make=_unused
    )
    with pytest.raises(DeviceError, match="no kernel; use attention='xformers'"):
        choose(tmp_path, {"a": blocked, "b": blocked})
    with pytest.raises(DeviceError, match="no attention runs on cpu: a, b failed"):
        choose(tmp_path, {"a": candidate(error="x"), "b": candidate(error="y")})


def _unused() -> SelfAttention:
    raise AssertionError("an attention with an obstacle is not made")


def test_only_one_attention_is_not_measured(tmp_path: Path) -> None:
    assert choose(tmp_path, {"a": candidate()}) == "a"
    assert list(tmp_path.iterdir()) == []
