"""``isoframe app`` before it listens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.interfaces.commands.serve import _user

SOURCES = Path(__file__).resolve().parents[4] / ".src"


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


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "http://[::1"])
def test_a_proxy_that_gradio_cannot_take_is_named(proxy: str) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "isoframe.engine.interfaces.commands", "app"],
        env=os.environ | {"PYTHONPATH": str(SOURCES), "ALL_PROXY": proxy}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "see ALL_PROXY" in done.stderr


def test_the_password_comes_from_a_file_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "auth").write_text("me:a:b\n")
    monkeypatch.setenv("ISOFRAME_APP_AUTH", "you:c")
    assert _user("x:y", tmp_path / "auth") == ("x", "y")
    assert _user(None, tmp_path / "auth") == ("me", "a:b")
    assert _user(None, None) == ("you", "c")
    monkeypatch.delenv("ISOFRAME_APP_AUTH")
    assert _user(None, None) is None
