"""``isoframe app``: the page in a browser."""

import os
import threading
from typing import Annotated

import typer
from typer import Option

from ..config import EngineConfig
from ..errors import ConfigError
from . import options
from .failures import readable_errors
from .serve import MaxSeconds, Port
from .serving import SERVER, Data, Loras, MaxQueue, Serving, Threads

_LOCAL = ("127.0.0.1", "localhost", "::1")

Host = Annotated[
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


def app(
    model: options.Model = "demo",
    host: Host = "127.0.0.1",
    port: Port = 7860,
    is_opened: Open = False,
    is_shared: Share = False,
    auth: Auth = None,
    data: Data = None,
    max_queue: MaxQueue = 16,
    lora: Loras = None,
    max_seconds: MaxSeconds = 120,
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
    """Make videos on a page in the browser; they survive a restart."""
    with readable_errors(debug=debug):
        config = EngineConfig(
            device=device, precision=precision, attention=attention, vram=vram, ram=ram,
            vae_tiles=vae_tiles, cache_dir=cache_dir, local_files_only=local_files_only,
        )  # fmt: skip
        serving = Serving(
            model=model, config=config, components=options.parse_components(component),
            data=data or config.cache_path() / "app", max_queue=max_queue, loras=tuple(lora or ()),
            num_threads=threads, max_seconds=max_seconds,
        )  # fmt: skip
        if (is_shared or host not in _LOCAL) and auth is None:
            raise ConfigError(
                "--auth USER:PASSWORD must be given where others can reach the page (--share, --host)"
            )
        _run(serving, host, port, is_opened, is_shared, None if auth is None else _user(auth))


def _run(
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
