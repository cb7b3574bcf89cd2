"""``isoframe serve``: videos over HTTP."""

import os
from typing import Annotated

import typer
from typer import Option

from ..config import EngineConfig
from ..errors import ConfigError
from . import options
from .failures import readable_errors
from .serving import SERVER, Data, Loras, MaxQueue, Serving, Threads

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


def serve(
    model: options.Model = "demo",
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key: ApiKey = None,
    cors_origin: CorsOrigins = None,
    data: Data = None,
    max_queue: MaxQueue = 16,
    ray: RayAddress = None,
    ray_actors: RayActors = None,
    lora: Loras = None,
    max_upload: MaxUpload = 20,
    max_seconds: MaxSeconds = 120,
    max_steps: MaxSteps = 100,
    device: options.Device = "auto",
    precision: options.Precision = None,
    attention: options.Attention = "auto",
    vram: options.Vram = None,
    ram: options.Ram = None,
    vae_tiles: options.VaeTiles = None,
    threads: Threads = None,
    component: options.ComponentOverrides = None,
    cache_dir: options.CacheDir = None,
    local_files_only: options.LocalFilesOnly = False,
    debug: options.Debug = False,
) -> None:
    """Serve videos over HTTP: /v1/videos with progress as Server-Sent Events; /docs describes it."""
    with readable_errors(debug=debug):
        config = EngineConfig(
            device=device, precision=precision, attention=attention, vram=vram, ram=ram,
            vae_tiles=vae_tiles, cache_dir=cache_dir, local_files_only=local_files_only,
        )  # fmt: skip
        serving = Serving(
            model=model, config=config, components=options.parse_components(component),
            data=data or config.cache_path() / "server", max_queue=max_queue, loras=tuple(lora or ()),
            num_threads=threads, upload_bytes=max_upload * 2**20, max_seconds=max_seconds,
            max_steps=max_steps, ray_address=ray, num_actors=ray_actors,
        )  # fmt: skip
        key = os.environ.get(_KEY_VARIABLE) if api_key is None else api_key
        _run(serving, host, port, key or None, tuple(cors_origin or ()))


def _run(serving: Serving, host: str, port: int, api_key: str | None, origins: tuple[str, ...]) -> None:
    try:
        # Without torch, which takes seconds: wrong options are told at once.
        from ..server.guard import Access

        access = Access(host=host, api_key=api_key, origins=origins)
        from ..server.app import make_app
        from ..server.listening import address, bind, make_server
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
