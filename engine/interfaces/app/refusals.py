"""What the engine refuses, told on the page."""

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import gradio as gr

from ...errors import IsoframeError
from ..server.videos.status import VideoStatus

P = ParamSpec("P")
T = TypeVar("T")


def told(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What ``action`` gives; what refuses it is told on the page."""
    try:
        return action(*args, **kwargs)
    except IsoframeError as error:
        raise gr.Error(str(error), print_exception=False) from error


def started(action: Callable[..., VideoStatus], *args: Any, **kwargs: Any) -> str:
    """The id of the video that ``action`` has made: the page watches it."""
    return told(action, *args, **kwargs).id


def act_on(action: Callable[[str], object], name: str | None) -> None:
    """Do something with the video that was chosen."""
    told(action, chosen(name))


def watch(name: str | None) -> tuple[str, Any]:
    """The video that was chosen, and the tab that shows it."""
    return chosen(name), gr.Tabs(selected="make")


def leave_unchecked(field: Any) -> None:
    """Take a field as it was filled in: what is wrong with it we say in a sentence, Gradio's own check says "Error"."""
    field.preprocess = lambda payload: getattr(payload, "path", payload)


def chosen(name: str | None) -> str:
    """The id of a video, if one was chosen."""
    if not name:
        raise gr.Error("choose a video first", print_exception=False)
    return name
