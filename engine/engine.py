"""The engine: one model, any number of jobs."""

import os
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from .checkpoint import open_transformer
from .conditioning import Conditioning
from .config import EngineConfig, SamplingConfig
from .denoiser import Denoiser, EventHandler, LatentSection, assemble
from .errors import DeviceError
from .transformer import PackedTransformer

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class Engine:
    """Generates videos with one FramePack checkpoint."""

    def __init__(self, transformer: PackedTransformer, config: EngineConfig) -> None:
        """Use :meth:`load`."""
        self.config = config
        self._denoiser = Denoiser(transformer)

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str] = "demo",
        *,
        config: EngineConfig | None = None,
        components: Mapping[str, str] | None = None,
    ) -> "Engine":
        """Load a transformer.

        Args:
            source: "demo", a Hub id, a folder or a single .safetensors file.
            config: what the engine may use.
            components: other sources for the companions, by name.
        """
        config = config or EngineConfig()
        device = resolve_device(config.device)
        dtype = resolve_dtype(config.precision, device)
        checkpoint = open_transformer(source, local_files_only=config.local_files_only)
        transformer = PackedTransformer.load(checkpoint, dtype, device, has_fp32_head=dtype == torch.bfloat16)
        return cls(transformer, config)

    def sample(
        self, conditioning: Conditioning, sampling: SamplingConfig, *, on_event: EventHandler | None = None
    ) -> Iterator[LatentSection]:
        """Latents in, latents out: yield every section in generation order. Needs no encoder and no VAE."""
        return self._denoiser.sample(conditioning, sampling, on_event)

    def sample_video(
        self, conditioning: Conditioning, sampling: SamplingConfig, *, on_event: EventHandler | None = None
    ) -> Tensor:
        """:meth:`sample` assembled in video order, start latent included: [1, C, 1 + n * window, Y, X] fp32."""
        sections = list(self.sample(conditioning, sampling, on_event=on_event))
        return assemble(sections, conditioning.start_latent)


def resolve_device(name: str) -> torch.device:
    """The torch device for ``EngineConfig.device``."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device {name!r} was asked for, but torch {torch.__version__} sees no CUDA device")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r} does not exist: torch sees {torch.cuda.device_count()} CUDA devices"
        )
    return device


def resolve_dtype(precision: str | None, device: torch.device) -> torch.dtype:
    """The dtype of weights and activations: by default fp32 on the CPU and bf16 on CUDA."""
    if precision is None:
        precision = "fp32" if device.type == "cpu" else "bf16"
    return _DTYPES[precision]
