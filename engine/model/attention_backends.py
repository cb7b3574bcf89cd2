"""Attention kernels behind one call: torch's own and those of other packages, each with what it needs to run."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
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
    run: Callable[[Tensor, Tensor, Tensor], Tensor]
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
class Library:
    """What a backend of another package needs.

    Attributes:
        backend: name of the backend.
        module: module that has the function.
        install: pip line.
        capabilities: compute capabilities, 10 * major + minor, that its kernels run on.
        head_dims: channels of a head that they take.
    """

    backend: str
    module: str
    install: str
    capabilities: range = range(80, 1000)
    head_dims: tuple[int, ...] = tuple(range(8, 257, 8))

    def obstacle(
        self,
        shape: AttentionShape,
        device: torch.device,
        capability: "Callable[[torch.device], int] | None" = None,
    ) -> str | None:
        """Why the backend cannot run ``shape`` on ``device``; ``capability`` stands in for the device's own."""
        name = f"attention {self.backend!r}"
        if device.type != "cuda":
            return f"{name} needs a CUDA device, got {device}; use attention='sdpa' (--attention sdpa)"
        try:
            importlib.import_module(self.module)
        except ImportError as error:
            return f"{name} needs the module {self.module} ({error}): {self.install}"
        if shape.dtype not in (torch.float16, torch.bfloat16):
            dtype = str(shape.dtype).removeprefix("torch.")
            return f"{name} computes in 16 bit, got {dtype}; use precision='bf16' (--precision bf16)"
        if shape.head_dim not in self.head_dims:
            return f"{name} does not take heads of {shape.head_dim} channels; use attention='sdpa' (--attention sdpa)"
        found = (capability or device_capability)(device)
        if found not in self.capabilities:
            return (
                f"{name} does not run on compute capability {found // 10}.{found % 10}; "
                "use attention='sdpa' (--attention sdpa)"
            )
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


def _function(module: str, name: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _flash_attn_2(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    result: Tensor = _function("flash_attn", "flash_attn_func")(q, k, v, softmax_scale=q.shape[-1] ** -0.5)
    return result


def _flash_attn_3(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    function = _function("flash_attn_interface", "flash_attn_func")
    result = function(q, k, v, softmax_scale=q.shape[-1] ** -0.5)
    # Early versions also return the log-sum-exp.
    attended: Tensor = result[0] if isinstance(result, tuple) else result
    return attended


def _sageattention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    function, scale = _function("sageattention", "sageattn"), q.shape[-1] ** -0.5
    # Version 1 subtracts the mean from the caller's k; version 2 changes the current device.
    with torch.cuda.device_of(q):
        result: Tensor = function(q, k.clone(), v, tensor_layout="NHD", is_causal=False, sm_scale=scale)
    return result


def _xformers(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    function = _function("xformers.ops", "memory_efficient_attention")
    result: Tensor = function(q, k, v, scale=q.shape[-1] ** -0.5)
    return result


_FLASH_ATTN_2 = Library(
    backend="flash-attn",
    module="flash_attn",
    install="pip install flash-attn, or the extra isoframe[attention]",
)
_FLASH_ATTN_3 = Library(
    backend="flash-attn-3",
    module="flash_attn_interface",
    install='pip install "git+https://github.com/Dao-AILab/flash-attention#subdirectory=hopper"',
    capabilities=range(90, 91),
)
_SAGEATTENTION = Library(
    backend="sageattention",
    module="sageattention",
    install="pip install sageattention, or the extra isoframe[attention]",
    head_dims=(64, 96, 128),
)
_XFORMERS = Library(
    backend="xformers",
    module="xformers.ops",
    install="pip install xformers, or the extra isoframe[attention]",
)

BACKENDS = {
    backend.name: backend
    for backend in (
        AttentionBackend(name="sdpa", exactness="exact", run=_sdpa, obstacle=sdpa_obstacle),
        AttentionBackend(
            name="flash-attn", exactness="rounding", run=_flash_attn_2, obstacle=_FLASH_ATTN_2.obstacle
        ),
        AttentionBackend(
            name="flash-attn-3", exactness="rounding", run=_flash_attn_3, obstacle=_FLASH_ATTN_3.obstacle
        ),
        AttentionBackend(
            name="sageattention",
            exactness="approximate",
            run=_sageattention,
            obstacle=_SAGEATTENTION.obstacle,
        ),
        AttentionBackend(name="xformers", exactness="rounding", run=_xformers, obstacle=_XFORMERS.obstacle),
    )
}
