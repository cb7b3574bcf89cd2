"""Options that a request gives and that change nothing in it."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from .fields import setting_of

# What a field may need to be at work (``needs`` of its setting): whether a request has it, and how people ask for it.
_NEEDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "guidance": (lambda asked: asked.cfg_scale != 1, "cfg_scale other than 1 (--cfg)"),
    "end": (lambda asked: asked.has_end_image, "an end_image or loop (--end-image, --loop)"),
    "video": (lambda asked: asked.video is not None, "a video (--extend)"),
    "step cache": (lambda asked: asked.step_cache != "none", "a step_cache (--step-cache)"),
    "magcache": (
        lambda asked: asked.step_cache == "magcache",
        "step_cache 'magcache' (--step-cache magcache)",
    ),
    "times": (
        lambda asked: len(asked.prompt_timeline().stretches) > 1,
        "prompts with times, such as [2.5s]",
    ),
    "start": (
        lambda asked: asked.image is not None or asked.video is not None,
        "an image or a video to start from",
    ),
}


def unused_options(request: Any) -> tuple[str, ...]:
    """A sentence for each option of a ``Request`` whose value is not its default, and which does nothing without another one."""
    found = []
    for entry in fields(request):
        about, value = setting_of(entry), getattr(request, entry.name)
        if about is None or not about.needs or value == entry.default:
            continue
        has_it, need = _NEEDS[about.needs]
        if not has_it(request):
            found.append(f"{entry.name} {value!r} is ignored: it needs {need}")
    return tuple(found)
