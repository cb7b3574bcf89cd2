"""What the server answers, to requests made of its OpenAPI document, is what the document says."""

import base64
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import typer
from hypothesis import HealthCheck, given, settings
from video_server import Asker, KeptWorkers, load, picture, serving, small_limits

from isoframe.engine import Engine
from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.interfaces.server.videos.service import VideoService

ROOT = Path(__file__).resolve().parents[5]
NUM_EXAMPLES = 200 if os.environ.get("ISOFRAME_SOAK") == "1" else 10
SETTINGS = settings(
    max_examples=NUM_EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
OPERATIONS = [
    ("GET", "/healthz"),
    ("GET", "/metrics"),
    ("GET", "/v1/models"),
    ("GET", "/v1/videos"),
    ("POST", "/v1/videos"),
    ("GET", "/v1/videos/{video_id}"),
    ("DELETE", "/v1/videos/{video_id}"),
    ("POST", "/v1/videos/{video_id}/cancel"),
    ("POST", "/v1/videos/{video_id}/pause"),
    ("POST", "/v1/videos/{video_id}/resume"),
    ("POST", "/v1/videos/{video_id}/redo"),
    ("GET", "/v1/videos/{video_id}/content"),
    ("GET", "/v1/videos/{video_id}/events"),
    ("GET", "/v1/videos/{video_id}/previews/{section}"),
]


def takes_something(operation: tuple[str, str]) -> bool:
    return operation[1] == "/v1/videos" or "{" in operation[1]


def is_json(case: schemathesis.Case) -> bool:
    return case.media_type == "application/json"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with load(tmp_path_factory.mktemp("cache")) as engine:
        yield engine


@pytest.fixture(scope="module")
def ask(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asker]:
    folder: Path = tmp_path_factory.mktemp("data")
    with serving(VideoService(KeptWorkers(engine), folder, limits=small_limits())) as ask:
        yield ask


@pytest.fixture(scope="module")
def document(ask: Asker) -> Any:
    return schemathesis.openapi.from_url(f"{ask.url}/openapi.json")


@pytest.fixture(scope="module")
def video(ask: Asker) -> str:
    """Id of a video that is done, with a picture of its section."""
    name = ask.make(previews=True)
    ask.wait(name)
    return name


def test_every_operation_is_tried(ask: Asker) -> None:
    paths = ask("GET", "/openapi.json").json["paths"]
    assert sorted((method.upper(), path) for path in paths for method in paths[path]) == sorted(OPERATIONS)


def test_the_page_on_the_server_names_every_operation_and_options_that_there_are() -> None:
    page = (ROOT / "docs" / "server.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^\| `(\w+) (/\S+)` \|", page, re.MULTILINE)) == sorted(OPERATIONS)
    app = typer.main.get_command(build_app())
    commands = [app.commands[name] for name in ("serve", "mcp")]  # type: ignore[attr-defined]  # a group has them
    options = {name for command in commands for option in command.params for name in option.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", page)) <= options


def name_of(case: tuple[str, str]) -> str:
    return " ".join(case)


@pytest.mark.parametrize("operation", OPERATIONS, ids=name_of)
def test_answers_to_valid_requests_are_what_the_document_says(
    document: Any, operation: tuple[str, str], video: str
) -> None:
    """schemathesis checks status, type, schema and headers, and that no answer is a 5xx.

    Paths are those of a video that there is, images are images: no schema can say so.
    """
    method, path = operation
    # What the document calls valid may be beyond the limits of this server.
    excluded = [schemathesis.checks.positive_data_acceptance] if method == "POST" else []

    @SETTINGS
    @given(case=document[path][method].as_strategy(generation_mode=schemathesis.GenerationMode.POSITIVE))
    def check(case: schemathesis.Case) -> None:
        if case.path_parameters and method == "GET":
            case.path_parameters["video_id"] = video
        if isinstance(case.body, dict):
            case.body["image"] = base64.b64encode(picture()).decode() if is_json(case) else picture()
        case.call_and_validate(timeout=20, excluded_checks=excluded)

    check()


@pytest.mark.parametrize("operation", [pair for pair in OPERATIONS if takes_something(pair)], ids=name_of)
def test_answers_to_invalid_requests_are_refusals_that_the_document_knows(
    document: Any, operation: tuple[str, str]
) -> None:
    method, path = operation

    @SETTINGS
    @given(case=document[path][method].as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(timeout=20)

    check()
