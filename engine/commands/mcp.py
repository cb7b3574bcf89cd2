"""``isoframe mcp``: videos for assistants, as tools of the Model Context Protocol."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from ..config import EngineConfig
from ..errors import ConfigError
from . import options
from .failures import readable_errors
from .serving import SERVER, Data, Loras, MaxQueue, Serving, Threads


def mcp(
    model: options.Model = "demo",
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
    data: Data = None,
    max_queue: MaxQueue = 16,
    lora: Loras = None,
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
    """Serve videos to an assistant on this machine, over stdin and stdout."""
    with readable_errors(debug=debug):
        config = EngineConfig(
            device=device, precision=precision, attention=attention, vram=vram, ram=ram,
            vae_tiles=vae_tiles, cache_dir=cache_dir, local_files_only=local_files_only,
        )  # fmt: skip
        serving = Serving(
            model=model, config=config, components=options.parse_components(component),
            data=data or config.cache_path() / "mcp", max_queue=max_queue, loras=tuple(lora or ()),
            num_threads=threads,
        )  # fmt: skip
        try:
            from ..server.mcp_tools import make_mcp_server
        except ImportError as error:
            raise ConfigError(f"isoframe mcp needs {error.name}; pip install 'isoframe[mcp]'") from error
        with serving.open() as service:
            typer.echo(f"serving {service.card.name} over stdin and stdout", err=True)
            make_mcp_server(service, images or []).run("stdio")
