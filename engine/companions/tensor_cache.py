"""Small tensors on disk (embeddings, preview colours), by the content of what they were computed from."""

import logging
from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors.torch import save
from torch import Tensor

from ..checkpoints.tensor_files import load_tensors, tensors_digest
from ..files import write_durably

_logger = logging.getLogger(__name__)


class TensorCache:
    """A folder of safetensors files, each written whole or not at all.

    A file that is damaged is computed again, and a folder that cannot be written costs only the time: neither
    fails a job.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_writable = True

    def read(self, key: str) -> dict[str, Tensor] | None:
        """The tensors stored under ``key``; None if there are none, or damaged ones."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            tensors, metadata = load_tensors(path)
        except (safetensors.SafetensorError, OSError) as error:
            _warn_of_damage(path, str(error))
            return None
        if metadata.get("digest") != tensors_digest(tensors):
            _warn_of_damage(path, "its content does not match its digest")
            return None
        return tensors

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Store ``tensors`` under ``key``; a failure is logged once."""
        stored = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        content = save(stored, metadata={"digest": tensors_digest(stored)})
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_durably(self._path(key), content)
        except OSError as error:
            if self._is_writable:
                _logger.warning(
                    "%s are not cached: %s cannot be written: %s", self.folder.name, self.folder, error
                )
            self._is_writable = False

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def _warn_of_damage(path: Path, reason: str) -> None:
    _logger.warning("the cached %s is damaged (%s): computing it again", path, reason)
