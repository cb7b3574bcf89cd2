"""The watermark example: a frame filter of the host's that uses a library which is not installed here."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from isoframe.engine.generation.frame_filter import apply_filter
from isoframe.engine.media.codecs import VideoFormat
from isoframe.engine.media.video import VideoWriter

EXAMPLE = Path(__file__).parents[3] / "examples" / "watermark.py"
METHOD = "dwtDctSvd"


class Encoder:
    """As of imwatermark: a mark of bytes for one BGR frame, here in the rows of its blue channel."""

    def set_watermark(self, kind: str, content: bytes) -> None:
        assert kind == "bytes"
        self.bits = np.unpackbits(np.frombuffer(content, np.uint8))

    def encode(self, frame: NDArray[np.uint8], method: str) -> NDArray[np.float32]:
        assert method == METHOD
        assert frame.flags["C_CONTIGUOUS"]
        marked = frame.astype(np.float32)
        marked[: len(self.bits), :, 0] = 280.0 * self.bits[:, None] - 20
        return marked


class Decoder:
    """As of imwatermark: the bits of one BGR frame."""

    def __init__(self, kind: str, num_bits: int) -> None:
        assert kind == "bits"
        self.num_bits = num_bits

    def decode(self, frame: NDArray[np.uint8], method: str) -> list[bool]:
        assert method == METHOD
        return [bool(row.mean() > 127) for row in frame[: self.num_bits, :, 0]]


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    library: Any = ModuleType("imwatermark")
    library.WatermarkEncoder, library.WatermarkDecoder = Encoder, Decoder
    monkeypatch.setitem(sys.modules, "imwatermark", library)
    spec = importlib.util.spec_from_file_location("watermark", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_mark_is_in_every_frame_and_read_as_most_frames_have_it(example: Any, tmp_path: Path) -> None:
    frames = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8))
    marked = apply_filter(example.mark, frames, 0)
    # Blue is the last channel of a frame and the first of the library's; the others pass as they are.
    assert torch.equal(marked[..., :2], frames[..., :2])
    assert not torch.equal(marked[..., 2], frames[..., 2])
    marked = torch.cat([marked, frames[:2]])
    with VideoWriter(tmp_path / "a.mp4", VideoFormat(height=64, width=64, crf=0), num_frames=7) as writer:
        writer.write(marked.numpy(), 0)
        writer.finish()
    assert example.read(str(tmp_path / "a.mp4")) == b"isoframe"
