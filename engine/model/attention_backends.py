"""Attention kernels behind one call: torch's own and those of other packages, each with what it needs to run."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

Exactness = Literal["exact", "rounding", "approximate"]

# Below this, the scores of torch's unfused attention cost time but not the job.
_MAX_SCORE_BYTES = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """The joint self-attention of a job, one sample.

    Attributes:
        num_tokens: latent and condition tokens.
        num_heads: heads.
        head_dim: channels of a head.
        dtype: of q, k and v.
    """

    num_tokens: int
    num_heads: int
    head_dim: int
    dtype: torch.dtype


Obstacle = Callable[[AttentionShape, torch.device], str | None]
Run = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionBackend:
    """One way to compute softmax attention with scale 1/sqrt(head_dim) and no mask.

    Attributes:
        name: as in ``EngineConfig.attention``.
        exactness: "exact" (the others are compared with it), "rounding" (the same algebra) or "approximate".
        run: maps q ``[B, M, H, K]``, k and v ``[B, N, H, K]`` to ``[B, M, H, K]``.
        obstacle: maps a shape and a device to the reason why this cannot run there, remedy included, or to None.
    """

    name: str
    exactness: Exactness
    run: Run
    obstacle: Obstacle

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend; no argument is changed.

        Args:
            q: ``[B, M, H, K]``, contiguous channels.
            k: ``[B, N, H, K]``, contiguous channels.
            v: ``[B, N, H, K]``, any strides with contiguous channels.

        Returns:
            ``[B, M, H * K]`` in ``q.dtype``.
        """
        return self.run(q, k, v).flatten(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirements:
    """What an attention needs of the machine and of a job.

    Attributes:
        name: of the attention.
        module: of another package, which has the function; None for an attention of Isoframe, which any dtype and the
            CPU have too.
        install: pip line of the package.
        least: compute capability on CUDA, 10 * major + minor.
        most: newest compute capability that its kernels run on; None where newer cards run them too.
        head_dims: channels of a head that it takes.
    """

    name: str
    module: str | None = None
    install: str = ""
    least: int = 80
    most: int | None = None
    head_dims: tuple[int, ...] = tuple(range(8, 257, 8))

    def obstacle(
        self,
        shape: AttentionShape,
        device: torch.device,
        capability: "Callable[[torch.device], int] | None" = None,
    ) -> str | None:
        """Why it cannot run ``shape`` on ``device``; ``capability`` stands in for the device's own."""
        name, instead = f"attention {self.name!r}", "use attention='sdpa' (--attention sdpa)"
        if self.module is not None:
            if device.type != "cuda":
                return f"{name} needs a CUDA device, got {device}; {instead}"
            try:
                importlib.import_module(self.module)
            except ImportError as error:
                return f"{name} needs the module {self.module} ({error}): {self.install}"
            if shape.dtype not in (torch.float16, torch.bfloat16):
                dtype = str(shape.dtype).removeprefix("torch.")
                return f"{name} computes in 16 bit, got {dtype}; use precision='bf16' (--precision bf16)"
        if shape.head_dim not in self.head_dims:
            return f"{name} does not take heads of {shape.head_dim} channels; {instead}"
        found = (capability or device_capability)(device) if device.type == "cuda" else self.least
        if not self.least <= found <= (self.most or found):
            wanted = f"{self.least / 10}" + (f" to {self.most / 10}" if self.most else "")
            return f"{name} needs compute capability {wanted}, got {found / 10}; {instead}"
        return None


def device_capability(device: torch.device) -> int:
    """10 * major + minor of a CUDA device."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def has_fused_kernel(shape: AttentionShape, device: torch.device) -> bool:
    """Whether torch's attention on a CUDA device has a kernel for ``shape`` that does not hold the scores."""
    # The probes look at sizes and strides alone: one row stands for all.
    row = torch.empty(shape.head_dim, dtype=shape.dtype, device=device)
    rows = row.expand(1, shape.num_heads, shape.num_tokens, shape.head_dim)
    params = torch.backends.cuda.SDPAParams(rows, rows, rows, None, 0.0, False, False)
    return (
        torch.backends.cuda.can_use_flash_attention(params)
        or torch.backends.cuda.can_use_efficient_attention(params)
        or torch.backends.cuda.can_use_cudnn_attention(params)
    )


def sdpa_obstacle(
    shape: AttentionShape,
    device: torch.device,
    has_fused_kernel: Callable[[AttentionShape, torch.device], bool] = has_fused_kernel,
) -> str | None:
    """Why torch's attention must not run: without a fused kernel it would hold every score at once.

    The CPU always has one. ``has_fused_kernel`` stands in for torch's answer.
    """
    score_bytes = 4 * shape.num_heads * shape.num_tokens**2
    if device.type != "cuda" or score_bytes <= _MAX_SCORE_BYTES or has_fused_kernel(shape, device):
        return None
    dtype = str(shape.dtype).removeprefix("torch.")
    return (
        f"attention 'sdpa' would need {score_bytes / 2**30:.1f} GiB for the scores of {shape.num_tokens} tokens: "
        f"torch {torch.__version__} has no fused kernel for {dtype} heads of {shape.head_dim} channels on {device}; "
        "use attention='flash-attn' (pip install flash-attn), 'xformers' (pip install xformers) or 'int8' (approximate)"
    )


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _run(module: str, function: str, scale: str, q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """A function of another package, which takes the scale of the scores as its argument ``scale``."""
    run = getattr(importlib.import_module(module), function)
    result = run(q, k, v, **{scale: q.shape[-1] ** -0.5}, **options)
    # Early versions of FlashAttention 3 also return the log-sum-exp.
    attended: Tensor = result[0] if isinstance(result, tuple) else result
    return attended


def _sageattention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    # Version 1 subtracts the mean from the caller's k; version 2 changes the current device.
    with torch.cuda.device_of(q):
        options = {"tensor_layout": "NHD", "is_causal": False}
        return _run("sageattention", "sageattn", "sm_scale", q, k.clone(), v, **options)


def _of_package(needs: Requirements, exactness: Exactness, run: Run) -> AttentionBackend:
    return AttentionBackend(name=needs.name, exactness=exactness, run=run, obstacle=needs.obstacle)


_EXTRA = "or the extra isoframe[attention]"

BACKENDS = {
    backend.name: backend
    for backend in (
        AttentionBackend(name="sdpa", exactness="exact", run=_sdpa, obstacle=sdpa_obstacle),
        _of_package(
            Requirements(name="flash-attn", module="flash_attn", install=f"pip install flash-attn, {_EXTRA}"),
            "rounding",
            partial(_run, "flash_attn", "flash_attn_func", "softmax_scale"),
        ),
        _of_package(
            Requirements(
                name="flash-attn-3",
                module="flash_attn_interface",
                install='pip install "git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper"',
                least=90,
                most=90,
            ),
            "rounding",
            partial(_run, "flash_attn_interface", "flash_attn_func", "softmax_scale"),
        ),
        _of_package(
            Requirements(
                name="sageattention",
                module="sageattention",
                install=f"pip install sageattention, {_EXTRA}",
                head_dims=(64, 96, 128),
            ),
            "approximate",
            _sageattention,
        ),
        _of_package(
            Requirements(name="xformers", module="xformers.ops", install=f"pip install xformers, {_EXTRA}"),
            "rounding",
            partial(_run, "xformers.ops", "memory_efficient_attention", "scale"),
        ),
    )
}
