"""Safetensors files that are damaged or made to harm, whatever they claim to be, and pickles."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

DOWN, UP = (f"transformer.single_transformer_blocks.1.proj_out.lora_{side}.weight" for side in "AB")


def safetensors(header: object, data: bytes = b"", *, header_bytes: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if header_bytes is None else header_bytes) + text + data


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.write_text, (self.path, "boom"))


def zipped_pickle(content: object) -> bytes:
    """As torch.save writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content))
    return buffer.getvalue()


_SOUND = safetensors({DOWN: entry([2, 4], 0, 32)}, bytes(32))
# Content and what the error says of it, to every reader of safetensors.
DAMAGED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "four-bytes": (b"\x10\x00\x00\x00", "truncated"),
    "header-ends-early": (safetensors({}, header_bytes=50), "truncated"),
    "header-of-no-length": (safetensors(b"", header_bytes=0), "corrupt header"),
    "header-of-2**63-bytes": (safetensors({}, header_bytes=2**63), "corrupt header"),
    "header-of-2**64-1-bytes": (safetensors({}, header_bytes=2**64 - 1), "corrupt header"),
    "header-of-100-mb-and-one": (safetensors({}, header_bytes=100_000_001), "corrupt header"),
    "header-shorter-than-it-is": (safetensors(b'{"a": 1}', header_bytes=4), "corrupt header"),
    "data-ends-early": (_SOUND[:-1], "truncated"),
    "bytes-after-the-data": (_SOUND + b"\0", "header describes"),
    "header-is-a-list": (safetensors([]), "corrupt header"),
    "header-is-null": (safetensors(b"null"), "corrupt header"),
    "header-is-no-text": (safetensors(b"\xff\xfe{}"), "corrupt header"),
    "header-is-nested-deeply": (safetensors(b'{"a":' * 100_000), "corrupt header"),
    "entry-is-a-number": (safetensors({DOWN: 3}), "corrupt header"),
    "no-offsets": (safetensors({DOWN: {"dtype": "F32", "shape": [1]}}), "corrupt header"),
    "overlapping": (
        safetensors({DOWN: entry([2, 4], 0, 32), UP: entry([2, 4], 16, 48)}, bytes(48)),
        "overlap",
    ),
    "same-bytes-twice": (
        safetensors({DOWN: entry([2, 4], 0, 32), UP: entry([2, 4], 0, 32)}, bytes(32)),
        "overlap",
    ),
    "reversed-offsets": (safetensors({DOWN: entry([2, 4], 32, 0)}, bytes(32)), "does not fill"),
    "offset-before-the-file": (safetensors({DOWN: entry([2, 4], -32, 0)}, bytes(32)), "does not fill"),
    "offset-after-the-file": (safetensors({DOWN: entry([2, 4], 32, 64)}, bytes(32)), "truncated"),
    "shape-of-other-size": (safetensors({DOWN: entry([2, 5], 0, 32)}, bytes(32)), "does not fill"),
    "shape-of-negative-size": (safetensors({DOWN: entry([-2, -4], 0, 32)}, bytes(32)), "no shape"),
    "shape-of-2**80-values": (safetensors({DOWN: entry([2**40, 2**40], 0, 32)}, bytes(32)), "does not fill"),
    "shape-is-text": (safetensors({DOWN: entry("ab", 0, 32)}, bytes(32)), "corrupt header"),  # type: ignore[arg-type]  # that is the case
    "offsets-are-infinite": (
        safetensors(b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, Infinity]}}'),
        "corrupt header",
    ),
    "git-lfs-pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "LFS"),
    "html": (b"<!DOCTYPE html><html>Access denied</html>", "corrupt header"),
    "pickle-0": (pickle.dumps(list(range(99)), protocol=0), "corrupt header|truncated"),
    "pickle-2": (pickle.dumps({}, protocol=2), "pickled"),
    "pickle-5": (pickle.dumps(list(range(99)), protocol=5), "pickled"),
    "torch-zip": (zipped_pickle({}), "pickled"),
}
