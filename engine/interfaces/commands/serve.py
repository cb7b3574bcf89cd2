"""What makes videos for others: ``isoframe serve`` over HTTP, ``mcp`` for an assistant, ``app`` on a page."""

import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from ...errors import ConfigError
from ...request.config import EngineConfig
from ..server.serving import Serving
from ..server.videos.engine_source import EngineSource
from .terminal.command import command
from .terminal.options import CONFIG, ComponentOverrides, Model, parse_components

SERVER = "Server"
_KEY_VARIABLE = "ISOFRAME_API_KEY"
_LIMITS = "Limits of one request"

Host = Annotated[
    str,
    Option("--host", help="Address to listen on; other than 127.0.0.1 needs a key.", rich_help_panel=SERVER),
]
Port = Annotated[int, Option("--port", help="0 takes any free one.", rich_help_panel=SERVER)]
ApiKey = Annotated[
    str | None,
    Option(
        "--api-key",
        help=f"What clients must send; better in ${_KEY_VARIABLE}, which other users of the machine do not see.",
        rich_help_panel=SERVER,
    ),
]
CorsOrigins = Annotated[
    list[str] | None,
    Option(
        "--cors-origin",
        metavar="ORIGIN",
        help="Web pages that may ask, such as https://app.example; repeatable (default: none).",
        rich_help_panel=SERVER,
    ),
]
RayAddress = Annotated[
    str | None,
    Option(
        "--ray",
        metavar="ADDRESS",
        help="Make the videos on this Ray cluster, one actor for every GPU: HOST:PORT, auto, or local. All nodes must see "
        "--data under the same path.",
        rich_help_panel=SERVER,
    ),
]
RayActors = Annotated[
    int | None,
    Option("--ray-actors", help="Actors (default: one for every GPU).", rich_help_panel=SERVER),
]
MaxUpload = Annotated[
    int, Option("--max-upload", metavar="MIB", help="Of an image.", rich_help_panel=_LIMITS)
]
MaxSeconds = Annotated[float, Option("--max-seconds", help="Of a video.", rich_help_panel=_LIMITS)]
MaxSteps = Annotated[int, Option("--max-steps", help="Of a section.", rich_help_panel=_LIMITS)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What all of them are told; each an option.

    Attributes:
        model: "demo", a Hub id, a folder or a file.
        data: folder of the videos.
        max_queue: videos that may wait.
        lora: files that requests may name.
        threads: that compute on the CPU.
        component: other sources of companion models.
    """

    model: Model = "demo"
    data: Annotated[
        Path | None,
        Option(
            "--data",
            metavar="DIR",
            help="Folder of the videos, which another start goes on with (default: one in the cache folder).",
            rich_help_panel=SERVER,
        ),
    ] = None
    max_queue: Annotated[
        int, Option("--max-queue", help="Videos that may wait; more are refused.", rich_help_panel=SERVER)
    ] = 16
    lora: Annotated[
        list[str] | None,
        Option(
            "--lora",
            metavar="FILE",
            help="A LoRA that requests may name, by its file's name without .safetensors; repeatable.",
            rich_help_panel=SERVER,
        ),
    ] = None
    threads: Annotated[
        int | None,
        Option(
            "--threads",
            help="Threads that compute on the CPU (default: one less than there are cores, so that the server answers).",
            rich_help_panel=SERVER,
        ),
    ] = None
    component: ComponentOverrides = None

    def serving(self, config: EngineConfig, folder: str) -> Serving:
        """What is served; its videos lie in ``folder`` of the cache, if nothing else is said."""
        components = parse_components(self.component)
        return Serving(
            source=EngineSource(
                model=self.model, config=config, components=components, loras=tuple(self.lora or ())
            ),
            data=self.data or config.cache_path() / folder, max_queue=self.max_queue, num_threads=self.threads,
        )  # fmt: skip


@command(config=CONFIG)
def serve(
    config: EngineConfig,
    served: Served,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKey = None,
    cors_origin: CorsOrigins = None,
    ray: RayAddress = None,
    ray_actors: RayActors = None,
    max_upload: MaxUpload = 20,
    max_seconds: MaxSeconds = 120,
    max_steps: MaxSteps = 100,
) -> None:
    """Serve videos over HTTP: /v1/videos with progress as Server-Sent Events; /docs describes it."""
    serving = replace(
        served.serving(config, "server"), upload_bytes=max_upload * 2**20, max_seconds=max_seconds,
        max_steps=max_steps, ray_address=ray, num_actors=ray_actors,
    )  # fmt: skip
    key = os.environ.get(_KEY_VARIABLE) if api_key is None else api_key
    _run(serving, host, port, key or None, tuple(cors_origin or ()))


def _run(serving: Serving, host: str, port: int, api_key: str | None, origins: tuple[str, ...]) -> None:
    try:
        # Without torch, which takes seconds: wrong options are told at once.
        from ..server.http.guard import Access

        access = Access(host=host, api_key=api_key, origins=origins)
        from ..server.http.application import make_app
        from ..server.http.listening import address, bind, make_server
    except ImportError as error:
        raise ConfigError(f"isoframe serve needs {error.name}; pip install 'isoframe[server]'") from error
    # A port that is taken is told before a model is read.
    with bind(host, port) as listener, serving.open() as service:
        url = address(listener)
        server = make_server(
            make_app(service, access),
            on_start=lambda: typer.echo(f"{url} serves {service.card.name}; Ctrl-C stops"),
            on_stop=service.announce_close,
        )
        server.run(sockets=[listener])


@command(config=CONFIG)
def mcp(
    config: EngineConfig,
    served: Served,
    images: Annotated[
        list[Path] | None,
        Option(
            "--images",
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Folder whose images may be named by their paths; repeatable (default: none, images come in base64).",
            rich_help_panel=SERVER,
        ),
    ] = None,
) -> None:
    """Serve videos to an assistant on this machine, over stdin and stdout."""
    serving = served.serving(config, "mcp")
    try:
        from ..server.mcp_tools import make_mcp_server
    except ImportError as error:
        raise ConfigError(f"isoframe mcp needs {error.name}; pip install 'isoframe[mcp]'") from error
    with serving.open() as service:
        typer.echo(f"serving {service.card.name} over stdin and stdout", err=True)
        make_mcp_server(service, images or []).run("stdio")


_LOCAL = ("127.0.0.1", "localhost", "::1")

PageHost = Annotated[
    str,
    Option("--host", help="Address to listen on; other than 127.0.0.1 needs --auth.", rich_help_panel=SERVER),
]
Open = Annotated[bool, Option("--open", help="Open the page in the browser.", rich_help_panel=SERVER)]
Share = Annotated[
    bool,
    Option(
        "--share",
        help="Make a public address through Gradio's tunnel; needs --auth.",
        rich_help_panel=SERVER,
    ),
]
Auth = Annotated[
    str | None,
    Option("--auth", metavar="USER:PASSWORD", help="What the page asks for.", rich_help_panel=SERVER),
]


@command(config=CONFIG)
def app(
    config: EngineConfig,
    served: Served,
    host: PageHost = "127.0.0.1",
    port: Port = 7860,
    is_opened: Open = False,
    is_shared: Share = False,
    auth: Auth = None,
    max_seconds: MaxSeconds = 120,
) -> None:
    """Make videos on a page in the browser; they survive a restart."""
    serving = replace(served.serving(config, "app"), max_seconds=max_seconds)
    if (is_shared or host not in _LOCAL) and auth is None:
        raise ConfigError(
            "--auth USER:PASSWORD must be given where others can reach the page (--share, --host)"
        )
    _run_page(serving, host, port, is_opened, is_shared, None if auth is None else _user(auth))


def _run_page(
    serving: Serving, host: str, port: int, is_opened: bool, is_shared: bool, auth: tuple[str, str] | None
) -> None:
    # Gradio keeps uploads there; they go with the data of the app.
    os.environ.setdefault("GRADIO_TEMP_DIR", str(serving.data / "uploads"))
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"isoframe app needs {error.name}; pip install 'isoframe[app]'") from error
    from ..app.running import serve_page

    with serve_page(
        serving, host=host, port=port, is_opened=is_opened, is_shared=is_shared, auth=auth
    ) as address:
        typer.echo(f"{address} is the page; Ctrl-C stops, and videos go on at the next start")
        threading.Event().wait()


def _user(auth: str) -> tuple[str, str]:
    user, colon, password = auth.partition(":")
    if not user or not colon or not password:
        raise ConfigError("--auth must be USER:PASSWORD")
    return user, password
