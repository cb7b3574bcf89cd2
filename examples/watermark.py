"""An invisible mark in every frame: `--frame-filter watermark:mark`, read back by `python examples/watermark.py FILE`.

Needs `pip install invisible-watermark` and frames of at least 256 x 256 pixels. The mark is the 8 bytes of TEXT.
"""

import sys

import av
import numpy as np
import torch
from imwatermark import WatermarkDecoder, WatermarkEncoder
from torch import Tensor

TEXT, METHOD = b"isoframe", "dwtDctSvd"


def mark(frames: Tensor, first_frame: int) -> Tensor:
    """Frames uint8 [T, H, W, 3] with the mark; the library wants BGR."""
    encoder = WatermarkEncoder()
    encoder.set_watermark("bytes", TEXT)
    marked = [encoder.encode(np.ascontiguousarray(frame[..., ::-1]), METHOD) for frame in frames.numpy()]
    return torch.from_numpy(np.stack(marked).clip(0, 255)[..., ::-1].astype(np.uint8))


def read(path: str) -> bytes:
    """The mark in a video: each bit as most of its frames have it."""
    decoder = WatermarkDecoder("bits", 8 * len(TEXT))
    with av.open(path) as container:
        votes = [
            decoder.decode(frame.to_ndarray(format="bgr24"), METHOD) for frame in container.decode(video=0)
        ]
    return np.packbits(np.mean(votes, axis=0) > 0.5).tobytes()


if __name__ == "__main__":
    sys.stdout.buffer.write(read(sys.argv[1]) + b"\n")
