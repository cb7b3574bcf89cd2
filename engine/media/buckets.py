"""The sizes that a model was trained on. Integers only."""

from collections.abc import Sequence


def choose_bucket(size: tuple[int, int], buckets: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket (height, width) nearest in shape to ``size`` (height, width); of equals the later one."""
    height, width = size
    # The published rule: a cross product instead of a ratio, "at least as good" instead of "better".
    return min(reversed(buckets), key=lambda bucket: abs(height * bucket[1] - width * bucket[0]))


def scale_buckets(
    buckets: Sequence[tuple[int, int]], base_resolution: int | None
) -> tuple[tuple[int, int], ...]:
    """Buckets (height, width) whose squarest one has ``base_resolution`` as its longer side, in multiples of 16 px."""
    if base_resolution is None:
        return tuple(buckets)
    base = max(choose_bucket((1, 1), buckets))
    scaled = [tuple(max(round(side * base_resolution / base / 16), 1) * 16 for side in b) for b in buckets]
    return tuple(dict.fromkeys((height, width) for height, width in scaled))
