"""Options that a request gives and that change nothing in it."""

from collections.abc import Callable
from typing import Any

# Fields, when they are at work in a request, and what that takes.
_USES: tuple[tuple[tuple[str, ...], Callable[[Any], bool], str], ...] = (
    (
        ("negative_prompt", "cfg_rescale"),
        lambda asked: asked.cfg_scale != 1,
        "cfg_scale other than 1 (--cfg)",
    ),
    (
        ("end_image_strength", "end_image_use"),
        lambda asked: asked.has_end_image,
        "an end_image or loop (--end-image, --loop)",
    ),
    (("direction",), lambda asked: asked.video is not None, "a video (--extend)"),
    (("step_cache_threshold",), lambda asked: asked.step_cache != "none", "a step_cache (--step-cache)"),
    (
        ("step_cache_max_skips", "step_cache_retention"),
        lambda asked: asked.step_cache == "magcache",
        "step_cache 'magcache' (--step-cache magcache)",
    ),
    (
        ("prompt_blend",),
        lambda asked: len(asked.prompt_timeline().stretches) > 1,
        "prompts with times, such as [2.5s]",
    ),
    (
        ("posterior",),
        lambda asked: asked.image is not None or asked.video is not None,
        "an image or a video to start from",
    ),
)


def unused_options(request: Any) -> tuple[str, ...]:
    """A sentence for each option of a ``Request`` whose value is not its default, and which does nothing without another one."""
    return tuple(
        f"{name} {getattr(request, name)!r} is ignored: it needs {need}"
        for names, is_used, need in _USES
        for name in names
        if getattr(request, name) != type(request).__dataclass_fields__[name].default and not is_used(request)
    )
