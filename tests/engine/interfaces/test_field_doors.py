"""A field of a request is described once, and every door offers it or says why it does not."""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from mcp.server.mcpserver import MCPServer
from video_server import KeptWorkers, load

from isoframe.engine import Engine, Request, SamplingConfig
from isoframe.engine.interfaces.app.form import Form
from isoframe.engine.interfaces.client import request_fields
from isoframe.engine.interfaces.comfyui.sample_node import SAMPLE
from isoframe.engine.interfaces.commands.command_line import build_app
from isoframe.engine.interfaces.server.http.schemas import VideoBody
from isoframe.engine.interfaces.server.mcp_tools import make_mcp_server
from isoframe.engine.interfaces.server.videos.service import VideoService
from isoframe.engine.request.fields import DOORS, offered, setting

# What doors say beside the fields of a request.
OF_THE_COMMAND = {
    "--out", "-o", "--model", "-m", "--revision", "--preset", "--report-error", "--overwrite", "--preview", "--png", "--latents",
    "--frame-filter", "--job", "--no-job", "--trace", "--json-progress", "--quiet", "-q", "--device", "--precision",
    "--attention", "--vram", "--ram", "--vae-tiles", "--no-vae-tiles", "--component", "--cache-dir",
    "--local-files-only", "--debug",
}  # fmt: skip
OF_THE_SERVER = {"model", "priority", "previews"}
OF_COMFYUI = {"engine", "positive", "negative", "image_embeds", "start_latent", "num_sections"}


def command_names() -> set[str]:
    command = typer.main.get_command(build_app()).commands["generate"]  # type: ignore[attr-defined]  # a group has them
    arguments = {p.name.upper() for p in command.params if not p.opts[0].startswith("-")}
    options = {name for p in command.params for name in (*p.opts, *p.secondary_opts) if name.startswith("-")}
    return arguments | options - OF_THE_COMMAND


# The names of a request's fields that each door really takes.
TAKEN: dict[str, Callable[[], set[str]]] = {
    "command": command_names,
    "server": lambda: set(VideoBody.model_fields) - OF_THE_SERVER,
    "app": lambda: {field.name for field in dataclasses.fields(Form)},
    "comfyui": lambda: {entry.name for entry in SAMPLE.inputs} - OF_COMFYUI,
}


def names_in(configuration: type, door: str) -> set[str]:
    """What ``door`` should call the fields of ``configuration``."""
    return {name for known in offered(configuration, door).values() for name in known.name.split()}


def undescribed(request: type) -> list[str]:
    """Fields that say nothing, and doors that are left out without a reason."""
    found = []
    for field in dataclasses.fields(request):
        about = field.metadata.get("setting")
        if about is None:
            found.append(f"{field.name} is described nowhere")
            continue
        found += [f"{field.name} has no help"] if not about.help else []
        found += [
            f"{field.name} is absent without a reason at {door}"
            for door, why in about.absent.items()
            if not why.strip() or door not in DOORS
        ]
    return found


def lacking(request: type, sampling: type = SamplingConfig) -> dict[str, set[str]]:
    """What each door should take and does not, or takes and should not."""
    # ComfyUI's node samples: images, prompts and files are the work of other nodes.
    asked = {door: sampling if door == "comfyui" else request for door in DOORS}
    return {door: names_in(asked[door], door) ^ taken() for door, taken in TAKEN.items()}


def test_every_field_is_described_and_every_absence_has_its_reason() -> None:
    assert undescribed(Request) == []


def test_every_door_takes_the_fields_that_it_offers_and_no_others() -> None:
    assert lacking(Request) == {door: set() for door in DOORS}


def test_a_field_that_a_door_lacks_without_a_reason_is_found() -> None:
    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class Planted(Request):
        new: int = setting(3, "A field that no door knows.", absent={"app": "a later version"})
        silent: int = setting(3, "No reason.", absent=dict.fromkeys(DOORS, ""))
        bare: int = 3

    @dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
    class PlantedSampling(SamplingConfig):
        new: int = setting(3, "A field that no door knows.")

    found = lacking(Planted, PlantedSampling)
    assert found == {"command": {"--new"}, "server": {"new"}, "app": set(), "comfyui": {"new"}}
    expected = [f"silent is absent without a reason at {door}" for door in DOORS]
    assert undescribed(Planted) == [*expected, "bare is described nowhere"]


def test_the_client_sends_every_field_that_the_server_takes_under_its_name() -> None:
    known = offered(Request, "server")
    request = Request(image=Path(__file__).parents[3] / "examples" / "spin.png", prompt="a", size=(64, 80))
    sent = set(request_fields(request))
    assert sent == {"image", "prompt", "height", "width"}
    assert names_in(Request, "server") >= sent
    assert known["size"].name == "height width"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(tmp_path_factory.mktemp("cache"))


def test_the_tool_of_assistants_takes_what_the_server_takes(engine: Engine, tmp_path: Path) -> None:
    with VideoService(KeptWorkers(engine), tmp_path) as service:
        server: MCPServer[None] = make_mcp_server(service, [])
        tools = {tool.name: tool for tool in asyncio.run(server.list_tools())}
    schema: Mapping[str, Any] = tools["create_video"].model_dump(by_alias=True)["inputSchema"]
    fields = schema["$defs"]["VideoParameters"]["properties"]
    assert set(fields) | {"image"} == set(VideoBody.model_fields)
    assert set(schema["properties"]) == {"image", "video"}
