"""Files that are damaged at random: bits, ends, blocks, numbers; the same ones in every run."""

import random
import re
from collections.abc import Iterator

# What an eight-byte, four-byte or text number becomes.
_NUMBERS = (b"0", b"-1", b"1e308", b"1e999", b"NaN", b"9" * 400, b"null", b'"x"', b"[]", b"{}", b"true")
_BINARY = (b"\0", b"\xff", b"\x7f\xff\xff\xff", b"\x80")


def mutants(content: bytes, number: int, seed: int) -> Iterator[bytes]:
    """``number`` versions of ``content``, each damaged in one way."""
    chance = random.Random(seed)
    for index in range(number):
        yield _MUTATIONS[index % len(_MUTATIONS)](content, chance)


def _flip(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    # The head of a file holds what decides how the rest is read.
    most = len(changed) if chance.random() < 0.5 else min(len(changed), 256)
    for _ in range(chance.choice((1, 1, 1, 8, 64))):
        changed[chance.randrange(most)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _truncate(content: bytes, chance: random.Random) -> bytes:
    return content[: chance.randrange(len(content))]


def _repeat(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    block = content[start : start + chance.choice((1, 4, 64, 4096))]
    return content[:start] + block * chance.choice((2, 100)) + content[start:]


def _overwrite(content: bytes, chance: random.Random) -> bytes:
    start, value = chance.randrange(len(content)), chance.choice(_BINARY)
    return content[:start] + value + content[start + len(value) :]


def _renumber(content: bytes, chance: random.Random) -> bytes:
    """Another value in place of one number of a text, where there is one."""
    places = list(re.finditer(rb"-?\d+(\.\d+)?", content[: 2**16]))
    if not places:
        return _flip(content, chance)
    place = chance.choice(places)
    return content[: place.start()] + chance.choice(_NUMBERS) + content[place.end() :]


def _nest(content: bytes, chance: random.Random) -> bytes:
    start = chance.randrange(len(content))
    return content[:start] + chance.choice((b"[", b'{"a":', b"(")) * 100_000 + content[start:]


_MUTATIONS = (_flip, _truncate, _repeat, _overwrite, _renumber, _nest)
