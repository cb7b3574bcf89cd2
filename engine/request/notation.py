"""Prompt notation of other programs, which the encoders would read as text."""

import re

from ..errors import ConfigError

NOTATION_HELP = (
    "times are written [2.5s] or [2.5s: 4s] with the text after them, LoRAs are given as loras (--lora FILE:STRENGTH), and "
    "words have no weights"
)
_FOREIGN = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        # Times in brackets: a number alone, with another unit, with a colon or a range: [0 sec], [2.4], [0:02], [0-2s: text].
        r"\[\s*(?:at\s+|from\s+|t\s*=\s*)?[-+]?[\d.,]*\d\s*"
        r"(?:\]|:|[-\u2013\u2014~]\s*\d|%|(?:s|secs?|seconds?|ms|m|mins?|minutes?|h|f|fr|frames?)\b)[^\]]*\]?",
        # LoRAs, embeddings and the like.
        r"<\s*(?:lora|lyco|locon|lycoris|hypernet|embedding)\s*:[^>]*>?",
        r"\bembedding:\S+",
        # Weights: (word:1.3), ((word)), {{word}}; and [from:to:0.5].
        r"\([^()]*[^\d\s:()]\s*:\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*\)",
        r"\(\([^()]*\)\)|\{\{[^{}]*\}\}",
        r"\[[^\[\]]*:\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*\]",
    )
)


def foreign_notation(text: str) -> str | None:
    """The first piece of ``text`` that is another program's notation; None where there is none."""
    found = [match for pattern in _FOREIGN if (match := pattern.search(text)) is not None]
    return min(found, key=re.Match.start).group() if found else None


def check_notation(argument: str, text: str) -> None:
    """Raise :class:`ConfigError` where ``text`` has another program's notation, which would change nothing."""
    found = foreign_notation(text)
    if found is not None:
        raise ConfigError(
            f"{argument} has {found!r}, which is no notation here and would be read as text: {NOTATION_HELP}; write it in plain "
            "words, or keep it as text with force=True (--force)"
        )


def check_text(argument: str, value: object) -> None:
    """Raise :class:`ConfigError` unless ``value`` is text that the encoders can read."""
    if not isinstance(value, str):
        raise ConfigError(f"{argument} must be text, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{argument} must be UTF-8, got {value[error.start]!r} at character {error.start + 1}"
        ) from error
