"""What memory this process took over the last minutes."""

import threading
import time
from collections import deque

import psutil
import torch

from .drawings import MemorySample

_SECONDS_BETWEEN, _MAX_SAMPLES = 1.0, 300


class MemoryHistory:
    """A thread takes a sample each second until :meth:`close`."""

    def __init__(self, device: torch.device) -> None:
        """Look at this process and ``device``."""
        self._device = device
        self._process = psutil.Process()
        self._start = time.monotonic()
        self._samples: deque[MemorySample] = deque(maxlen=_MAX_SAMPLES)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="isoframe-memory", daemon=True)
        self._thread.start()

    def samples(self) -> tuple[MemorySample, ...]:
        """The samples that are kept, the oldest first."""
        return tuple(self._samples)

    def close(self) -> None:
        """Stop looking."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(_SECONDS_BETWEEN):
            is_cuda = self._device.type == "cuda"
            sample = MemorySample(
                seconds=time.monotonic() - self._start,
                ram_bytes=self._process.memory_info().rss,
                device_bytes=torch.cuda.memory_reserved(self._device) if is_cuda else None,
            )
            self._samples.append(sample)
