"""``isoframe app`` before it listens."""

import sys

import pytest
from typer.testing import CliRunner

from isoframe.engine.interfaces.commands.command_line import build_app


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "a password must be given where others can reach the page"),
        (["--share"], "a password must be given"),
        (["--share", "--auth", "me"], "the password of the page must be USER:PASSWORD"),
        (["--port", "70000"], "--port must be from 0 to 65535, got 70000"),
        (["--port", "-1"], "--port must be from 0 to 65535, got -1"),
        (["--max-queue", "0"], "--max-queue must be at least 1, got 0"),
    ],
)
def test_who_may_reach_the_page_is_settled_before_anything_is_loaded(
    arguments: list[str], message: str
) -> None:
    result = CliRunner().invoke(build_app(), ["app", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    result = CliRunner().invoke(build_app(), ["app"])
    assert result.exit_code == 2
    assert "pip install 'isoframe[app]'" in result.stderr
