"""The device: which one, and what to do where its memory does not suffice."""

import contextlib
from collections.abc import Iterator

import torch

from ..kernels import HAS_TRITON
from .errors import DeviceError
from .files import MACHINE_LIMITS

_OTHER_DEVICE = "use device='cpu' (--device cpu) or a card with more memory"
_SMALLER = "take a smaller size (--size)"
_REMEDIES = {
    "load": _OTHER_DEVICE,
    "text": _OTHER_DEVICE,
    "image": _OTHER_DEVICE,
    "denoise": _SMALLER,
    "prepare": _OTHER_DEVICE,
    "decode": f"set vae_tiles=True (--vae-tiles) or {_SMALLER}",
}

# What Python says in a RuntimeError, and libraries where they wrap an OSError, at a limit of this process.
_LIMIT_TEXTS = ("can't start new thread", "Too many open files")
# What libraries say in a plain RuntimeError: cuBLAS cannot make its handle without memory, and cuDNN has no algorithm for a
# convolution whose workspace does not fit.
_MEMORY_TEXTS = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "unable to find an engine to execute this computation",
    "can't allocate memory",
    "not enough memory",
)


def resolve_device(name: str) -> torch.device:
    """The device called ``name``: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        DeviceError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"device {name!r} needs CUDA, and torch {torch.__version__} sees none; check the driver, install a CUDA "
            "build of torch, or use device='cpu' (--device cpu)"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r} does not exist: torch sees {torch.cuda.device_count()} CUDA devices"
        )
    # torch wants a number where it limits the memory of a device.
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def check_triton(device: torch.device) -> None:
    """Raise :class:`DeviceError` where a CUDA device lacks Triton, which its kernels are written in."""
    if device.type == "cuda" and not HAS_TRITON:
        raise DeviceError(
            "a CUDA device needs Triton: pip install triton (Linux) or pip install triton-windows (Windows), "
            "or use device='cpu' (--device cpu)"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that the device, or the RAM on the CPU, does not suffice: torch's own way, or a library's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _MEMORY_TEXTS)


@contextlib.contextmanager
def memory_errors(phase: str) -> Iterator[None]:
    """Turn a lack of memory in ``phase`` (see :class:`PhaseEvent`) into a :class:`DeviceError` with a remedy."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0].partition(" GPU ")[0]
        raise DeviceError(
            f"the device has too little memory for phase {phase!r} ({reason}); {_REMEDIES[phase]}"
        ) from error


@contextlib.contextmanager
def machine_errors(work: str) -> Iterator[None]:
    """Turn a lack of threads, files or memory of this process during ``work`` into a :class:`DeviceError` with a remedy."""
    try:
        yield
    except (OSError, RuntimeError, MemoryError) as error:
        if not _is_of_machine(error):
            raise
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0] or "too little memory"
        raise DeviceError(
            f"{work} stopped: {reason}; end other programs, or raise the limits of this process (ulimit -a)"
        ) from error


def _is_of_machine(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno in MACHINE_LIMITS
    return is_out_of_memory(error) or any(text in str(error) for text in _LIMIT_TEXTS)
