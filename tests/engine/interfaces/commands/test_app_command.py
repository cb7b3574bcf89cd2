"""``isoframe app`` before it listens."""

import sys

import pytest
from typer.testing import CliRunner

from isoframe.engine.interfaces.commands.command_line import build_app


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "--auth USER:PASSWORD must be given where others can reach the page"),
        (["--share"], "--auth USER:PASSWORD must be given"),
        (["--share", "--auth", "me"], "--auth must be USER:PASSWORD"),
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
    monkeypatch.setenv("GRADIO_TEMP_DIR", "unused")
    result = CliRunner().invoke(build_app(), ["app"])
    assert result.exit_code == 2
    assert "pip install 'isoframe[app]'" in result.stderr
