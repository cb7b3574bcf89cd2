"""The LoRAs that an engine has read: by the names that jobs call them, or by their files."""

import difflib
import os
from pathlib import Path

from .errors import ConfigError
from .lora import LayerShapes, Lora, read_lora


class LoraLibrary:
    """LoRAs of one model; each file is read once, and again when it has changed."""

    def __init__(self, shapes: LayerShapes) -> None:
        """An empty library for a model with the layers ``shapes``."""
        self._shapes = shapes
        self._files: dict[Path, tuple[tuple[int, int], Lora]] = {}
        self._paths: dict[str, Path] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The names that :meth:`load` gave, in order."""
        return tuple(self._paths)

    def load(self, path: str | os.PathLike[str], name: str | None = None) -> str:
        """Read a LoRA and give it a name.

        Args:
            path: a .safetensors file, or a folder with one.
            name: what jobs call it; None takes the name of the file without its suffix.

        Returns:
            The name.

        Raises:
            ConfigError: another file has this name.
            CheckpointError: the file is damaged or does not fit the model.
        """
        resolved = _resolve(path)
        name = name or resolved.stem
        owner = self._paths.get(name)
        if owner not in (None, resolved):
            raise ConfigError(
                f"name must be new, got {name!r}, which is {owner}; give another name or unload it"
            )
        self._read(resolved)
        self._paths[name] = resolved
        return name

    def unload(self, source: str | os.PathLike[str]) -> None:
        """Forget the LoRA that is called ``source``, or whose file that is.

        Raises:
            ConfigError: there is no such LoRA.
        """
        path = self._paths.get(os.fspath(source)) or _resolve(source)
        if path not in self._files:
            raise ConfigError(f"no LoRA {os.fspath(source)!r} is loaded; loaded are: {_listed(self.names)}")
        del self._files[path]
        self._paths = {name: owner for name, owner in self._paths.items() if owner != path}

    def find(self, source: str | os.PathLike[str]) -> Lora:
        """The LoRA that is called ``source``, or that lies there; a file is read now if need be.

        Raises:
            ConfigError: neither a name nor a path that exists.
            CheckpointError: the file is damaged or does not fit the model.
        """
        path = self._paths.get(os.fspath(source))
        if path is None:
            path = _resolve(source)
            if not path.exists():
                raise ConfigError(self._missing(os.fspath(source), path))
        return self._read(path)

    def _read(self, path: Path) -> Lora:
        version = _version(path)
        if path not in self._files or self._files[path][0] != version:
            self._files[path] = version, read_lora(path, self._shapes)
        return self._files[path][1]

    def _missing(self, source: str, path: Path) -> str:
        nearest = difflib.get_close_matches(source, self.names, n=1)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
        return (
            f"a LoRA must be a .safetensors file or the name of a loaded one, got {source!r}: {path} does not exist, and "
            f"loaded are: {_listed(self.names)}{hint}"
        )


def _resolve(path: str | os.PathLike[str]) -> Path:
    return Path(os.path.realpath(Path(path).expanduser()))


def _version(path: Path) -> tuple[int, int]:
    """Changes when the file is written; of an absent file the reader tells."""
    if not path.is_file():
        return 0, 0
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"
