"""Jobs that are held at their first step."""

import threading
from typing import Any

import pytest

from isoframe.engine.sampling.denoiser import Denoiser

TIMEOUT = 60


class Gate:
    """Holds the jobs of an engine at their first step until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._reached, self._opened = threading.Event(), threading.Event()
        velocity = Denoiser._velocity

        def held(*args: Any) -> Any:
            self._reached.set()
            assert self._opened.wait(TIMEOUT)
            return velocity(*args)

        monkeypatch.setattr(Denoiser, "_velocity", held)

    def wait(self) -> None:
        assert self._reached.wait(TIMEOUT)

    def open(self) -> None:
        self._opened.set()
