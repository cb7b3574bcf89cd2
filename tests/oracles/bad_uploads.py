"""Requests for a video that a server must refuse, each with what is wrong about it."""

import base64
import io
import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image
from video_server import SMALL, form, picture

JSON = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BadUpload:
    """A body that must be refused.

    Attributes:
        name: what is wrong.
        body: of the request.
        content_type: header.
        field: that the answer must name.
    """

    name: str
    body: bytes
    content_type: str
    field: str


def bad_uploads() -> list[BadUpload]:
    """All of them."""
    return [*_values(), *_json_types(), *_json_bodies(), *_pictures(), *_base64(), *_forms()]


def _values() -> Iterator[BadUpload]:
    """As parts of a form."""
    cases: list[tuple[str, str, object]] = [
        ("a prompt of 100 kB", "prompt", "ä" * 50_000),
        ("a prompt of 100 kB of emoji", "prompt", "🎬" * 25_000),
        ("an empty prompt", "prompt", ""),
        ("a time in the prompt that ends before it begins", "prompt", "[2s: 1s] x"),
        ("a time beyond the video", "prompt", "a [0s] b [99s] c"),
        ("a negative prompt of 100 kB", "negative_prompt", "z" * 100_000),
        ("seconds that are not a number", "seconds", "NaN"),
        ("infinite seconds", "seconds", "inf"),
        ("seconds in words", "seconds", "five"),
        ("no seconds", "seconds", "0"),
        ("negative seconds", "seconds", "-1"),
        ("seconds above the limit", "seconds", "1e3"),
        ("seconds above everything", "seconds", "1e308"),
        ("half a step", "num_steps", "1.5"),
        ("no step", "num_steps", "0"),
        ("steps above the limit", "num_steps", "101"),
        ("more steps than an integer holds", "num_steps", "9" * 400),
        ("a negative seed", "seed", "-1"),
        ("a seed of 64 bits", "seed", str(2**63)),
        ("a height that is no multiple of 16", "height", "65"),
        ("a height without a width", "height", "64"),
        ("a width without a height", "width", "64"),
        ("a height of nothing", "height", "0"),
        ("an order that there is not", "order", "sideways"),
        ("no frames per second", "fps", "0"),
        ("a million frames per second", "fps", "1000000"),
        ("a quality that there is not", "crf", "52"),
        ("guidance that is not a number", "guidance_scale", "nan"),
        ("guidance above everything", "guidance_scale", "1e300"),
        ("a rescale of 2", "cfg_rescale", "2"),
        ("a window of nothing", "latent_window_size", "0"),
        ("a huge window", "latent_window_size", "1000000"),
        ("a sampler that there is not", "sampler", "ddim"),
        ("a step cache that there is not", "step_cache", "magic"),
        ("a posterior that there is not", "posterior", "mean"),
        ("a priority in words", "priority", "high"),
        ("previews that are neither", "previews", "maybe"),
        ("a model that is not served", "model", "../../etc/passwd"),
        ("LoRAs that are no JSON", "loras", "style"),
        ("a LoRA by its path", "loras", json.dumps([{"name": "/etc/passwd"}])),
        ("a LoRA up the folders", "loras", json.dumps([{"name": "../style"}])),
        ("a LoRA of infinite strength", "loras", '[{"name": "a", "strength": Infinity}]'),
        ("LoRAs nested a thousand deep", "loras", "[" * 100_000),
        ("an image by its path in a text part", "image", "/etc/passwd"),
        ("an unknown field", "path", "/etc/passwd"),
        ("an unknown field with a hostile name", "__class__", "x"),
        ("the paddings, which are not offered", "latent_paddings", "[1, 0]"),
    ]
    for name, field, value in cases:
        files = {} if field == "image" else {"image": picture()}
        body, kind = form({**SMALL, field: value}, files)
        # What is wrong with one of a pair is told of the first.
        yield BadUpload(
            name=name, body=body, content_type=kind, field="height" if field == "width" else field
        )
    body, kind = form({**SMALL, "height": 2048, "width": 2048}, {"image": picture()})
    yield BadUpload(name="a video of 4 megapixels", body=body, content_type=kind, field="height")


def _json_types() -> Iterator[BadUpload]:
    cases: list[tuple[str, str, Any]] = [
        ("a prompt that is a number", "prompt", 7),
        ("a prompt that is null", "prompt", None),
        ("a prompt that is a list", "prompt", ["a"]),
        ("steps that are true", "num_steps", True),
        ("steps in quotes", "num_steps", "2"),
        ("steps as a fraction", "num_steps", 1.5),
        ("seconds that are not a number", "seconds", float("nan")),
        ("seconds that are a dictionary", "seconds", {}),
        ("a seed above everything", "seed", 10**40),
        ("an image that is a number", "image", 3),
        ("LoRAs that are a dictionary", "loras", {"name": "x"}),
        ("an order that is a number", "order", 1),
    ]
    for name, field, value in cases:
        image = base64.b64encode(picture()).decode()
        body = json.dumps({**SMALL, "image": image, field: value}).encode()
        yield BadUpload(name=f"{name}, in JSON", body=body, content_type=JSON, field=field)


def _json_bodies() -> Iterator[BadUpload]:
    cases = [
        ("no body", b"", "body"),
        ("half a body", b'{"prompt": "a', "body"),
        ("a list", b"[]", "body"),
        ("a number", b"1", "body"),
        ("not UTF-8", b'{"prompt": "\xff"}', "body"),
        ("half of a surrogate pair", b'{"prompt": "\\ud800", "image": ""}', "body"),
        ("nested a hundred thousand deep", b'{"a":' * 100_000, "body"),
        ("without an image", b'{"prompt": "a"}', "image"),
        ("in another type", b"a=b", "content-type"),
    ]
    for name, body, field in cases:
        kind = "text/plain" if field == "content-type" else JSON
        yield BadUpload(name=f"JSON {name}", body=body, content_type=kind, field=field)


def _pictures() -> Iterator[BadUpload]:
    whole = picture(256, 256, "PNG")
    noise = Image.effect_noise((256, 256), 90)
    content = io.BytesIO()
    noise.save(content, format="JPEG")
    jpeg = content.getvalue()
    cases = [
        ("of no bytes", b""),
        ("that is text", b"hello"),
        ("that is a video", b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 100),
        ("that is a PDF", b"%PDF-1.7\n" + b"0" * 100),
        ("that is a program", b"\x7fELF" + b"\x00" * 200),
        ("that is a PNG's signature", whole[:8]),
        ("that is cut off", jpeg[: len(jpeg) // 2]),
        ("with a damaged checksum", whole[:60] + bytes([whole[60] ^ 255]) + whole[61:]),
        ("of a pixel", picture(1, 1)),
        ("of 8 pixels a side", picture(8, 8)),
        ("much too wide", picture(640, 64)),
        ("of no pixels", _png_header(0, 0)),
        ("that says it has 4 gigapixels", _png_header(65_535, 65_535)),
        ("that says it has 100 megapixels", _png_header(10_000, 10_000)),
        ("above the limit of pixels", picture(1001, 1001)),
        ("above the limit of bytes", whole + b"\x00" * 2**20),
        ("in TIFF", picture(64, 64, "TIFF")),
        ("in ICO", picture(64, 64, "ICO")),
        ("of SVG", b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'),
        ("that is a PostScript program", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n"),
        ("animated, with a damaged first frame", _animation()[:60]),
    ]
    for name, file in cases:
        body, kind = form(SMALL, {"image": file})
        yield BadUpload(name=f"an image {name}", body=body, content_type=kind, field="image")


def _base64() -> Iterator[BadUpload]:
    cases = [
        ("an address", "http://127.0.0.1:1/a.png"),
        ("a file's address", "file:///etc/passwd"),
        ("a path", "/etc/passwd"),
        ("a path up the folders", "../../../../etc/passwd"),
        ("nothing", ""),
        ("broken base64", "a$b"),
        ("a data URL of text", "data:text/html;base64,aGVsbG8="),
        ("letters beyond ASCII", "ä" * 100),
        ("spaces", " " * 100),
    ]
    for name, text in cases:
        body = json.dumps({**SMALL, "image": text}).encode()
        yield BadUpload(name=f"in place of base64 {name}", body=body, content_type=JSON, field="image")


def _forms() -> Iterator[BadUpload]:
    whole, kind = form(SMALL, {"image": picture()})
    mark = b"--" + kind.rpartition("=")[2].encode()
    cases = [
        ("cut off inside the image", whole[:-60], kind, "body"),
        ("cut off before the image", whole[:150], kind, "body"),
        ("of nothing", b"", kind, "body"),
        ("without an image", *form(SMALL, {}), "image"),
        ("without its boundary", whole, "multipart/form-data", "body"),
        ("with another boundary", whole, "multipart/form-data; boundary=other", "body"),
        ("with two files", *form(SMALL, {"image": picture(), "other": picture()}), "body"),
        ("with a thousand fields", *form({f"f{i}": i for i in range(1000)}, {"image": picture()}), "body"),
        ("with a field twice", mark + b'\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nb\r\n' + whole, kind, "prompt"),
        ("with a prompt that is a file", *form({}, {"prompt": picture()}), "image"),
        ("with a part without a name", mark + b"\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + whole, kind, "body"),
    ]  # fmt: skip
    for name, body, content_type, field in cases:
        yield BadUpload(name=f"a form {name}", body=body, content_type=content_type, field=field)


def _png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\x00" * 100)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _animation() -> bytes:
    frames = [Image.effect_noise((64, 64), 50 + i) for i in range(3)]
    content = io.BytesIO()
    frames[0].save(content, format="GIF", save_all=True, append_images=frames[1:])
    return content.getvalue()
