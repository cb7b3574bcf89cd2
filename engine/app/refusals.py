"""What the engine refuses, told on the page."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import gradio as gr

from ..errors import IsoframeError

if TYPE_CHECKING:
    from ..server.status import VideoStatus


def started(make: Callable[[], "VideoStatus"]) -> str:
    """Id of a new video; what refuses it is told on the page."""
    try:
        return make().id
    except IsoframeError as error:
        raise gr.Error(str(error), print_exception=False) from error


def act_on(action: Callable[[str], object], name: str | None) -> None:
    """Do something with the video that was chosen."""
    if not name:
        raise gr.Error("choose a video first", print_exception=False)
    try:
        action(name)
    except IsoframeError as error:
        raise gr.Error(str(error), print_exception=False) from error
