"""Pictures to judge the demo model by eye."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_EVERY = 9
_SCALE = 2
_GAP = 1


def save_rows(rows: Sequence[Tensor], path: Path) -> None:
    """Write videos, uint8 [T, H, W, 3] of one length, as rows of small pictures."""
    from PIL import Image

    strips = [torch.cat([_framed(frame) for frame in row[::_EVERY]], dim=1) for row in rows]
    sheet = torch.cat(strips)
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(sheet.numpy())
    image = image.resize((image.width * _SCALE, image.height * _SCALE), Image.Resampling.NEAREST)
    image.save(path, optimize=True)


def _framed(frame: Tensor) -> Tensor:
    """A frame [H, W, 3] with a grey border."""
    height, width, _ = frame.shape
    framed = torch.full((height + 2 * _GAP, width + 2 * _GAP, 3), 128, dtype=torch.uint8)
    framed[_GAP:-_GAP, _GAP:-_GAP] = frame
    return framed
