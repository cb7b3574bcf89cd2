"""What makes videos for others: ``isoframe serve`` over HTTP, ``mcp`` for an assistant, ``app`` on a page."""

import os
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from ...errors import ConfigError
from ...request.config import EngineConfig
from ...request.fields import setting
from ..server.serving import Serving
from ..server.videos.engine_source import EngineSource
from ..server.videos.limits import Limits
from .terminal.command import command
from .terminal.options import COMPONENT, CONFIG, MODEL, parse_components
from .terminal.printing import echo

SERVER = "Server"
_KEY_VARIABLE = "ISOFRAME_API_KEY"
_LIMITS = "Limits of one request"

_PORT_HELP = "0 takes any free one."
_MAX_SECONDS: float = setting(120, "Of a video.", option="--max-seconds", panel=_LIMITS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What ``serve``, ``mcp`` and ``app`` are all told; each field is an option.

    Attributes:
        model: "demo", a Hub id, a folder or a file.
        data: folder of the videos.
        max_queue: videos that may wait.
        lora: files that requests may name.
        threads: that compute on the CPU.
        component: other sources of companion models.
    """

    model: str = MODEL
    data: Path | None = setting(
        None, "Folder of the videos, which another start goes on with (default: one in the cache folder).", metavar="DIR",
        panel=SERVER,
    )  # fmt: skip
    max_queue: int = setting(16, "Videos that may wait; more are refused.", panel=SERVER)
    lora: list[str] | None = setting(
        None, "A LoRA that requests may name, by its file's name without .safetensors; repeatable.", metavar="FILE",
        panel=SERVER,
    )  # fmt: skip
    threads: int | None = setting(
        None,
        "Threads that compute on the CPU (default: $OMP_NUM_THREADS, else all cores, as everywhere: they decide the bits).",
        panel=SERVER,
    )  # fmt: skip
    component: list[str] | None = COMPONENT

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
    host: str = setting(
        "127.0.0.1", "Address to listen on; other than 127.0.0.1 needs a key.", panel=SERVER
    ),
    port: int = setting(8000, _PORT_HELP, panel=SERVER),
    api_key: str | None = setting(
        None, f"What clients must send; better in ${_KEY_VARIABLE}, which other users of the machine do not see.",
        panel=SERVER,
    ),
    cors_origin: list[str] | None = setting(
        None, "Web pages that may ask, such as https://app.example; repeatable (default: none).", metavar="ORIGIN",
        panel=SERVER,
    ),
    ray: str | None = setting(
        None,
        "Make the videos on this Ray cluster, one actor for every GPU: HOST:PORT, auto, or local. All nodes must see --data "
        "under the same path.",
        metavar="ADDRESS", panel=SERVER,
    ),
    ray_actors: int | None = setting(None, "Actors (default: one for every GPU).", panel=SERVER),
    max_upload: int = setting(20, "Of an image.", metavar="MIB", panel=_LIMITS),
    max_seconds: float = _MAX_SECONDS,
    max_steps: int = setting(100, "Of a section.", panel=_LIMITS),
) -> None:  # fmt: skip
    """Serve videos over HTTP: /v1/videos with progress as Server-Sent Events; /docs describes it."""
    serving = replace(
        served.serving(config, "server"), ray_address=ray, num_actors=ray_actors,
        limits=Limits(upload_bytes=max_upload * 2**20, seconds=max_seconds, num_steps=max_steps),
    )  # fmt: skip
    key = os.environ.get(_KEY_VARIABLE) if api_key is None else api_key
    try:
        # Without torch, which takes seconds: wrong options are told at once.
        from ..server.http.guard import Access

        access = Access(host=host, api_key=key or None, origins=tuple(cors_origin or ()))
        from ..server.http.application import make_app
        from ..server.http.listening import address, bind, make_server
    except ImportError as error:
        raise ConfigError(f"isoframe serve needs {error.name}; pip install 'isoframe[server]'") from error
    # A port that is taken is told before a model is read.
    with bind(host, port) as listener, serving.open() as service:
        url = address(listener)
        server = make_server(
            make_app(service, access),
            on_start=lambda: echo(f"{url} serves {service.card.name}; Ctrl-C stops"),
            on_stop=service.announce_close,
        )
        server.run(sockets=[listener])


@command(config=CONFIG)
def mcp(
    config: EngineConfig,
    served: Served,
    images: Annotated[
        list[Path] | None,
        typer.Option(
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
        echo(f"serving {service.card.name} over stdin and stdout", err=True)
        make_mcp_server(service, images or []).run("stdio")


_LOCAL = ("127.0.0.1", "localhost", "::1")
_AUTH_VARIABLE = "ISOFRAME_APP_AUTH"


@command(config=CONFIG)
def app(
    config: EngineConfig,
    served: Served,
    host: str = setting(
        "127.0.0.1", "Address to listen on; other than 127.0.0.1 needs a password.", panel=SERVER
    ),
    port: int = setting(7860, _PORT_HELP, panel=SERVER),
    is_opened: bool = setting(False, "Open the page in the browser.", option="--open", panel=SERVER),
    is_shared: bool = setting(
        False, "Make a public address through Gradio's tunnel; needs a password.", option="--share", panel=SERVER
    ),
    auth: str | None = setting(
        None,
        f"What the page asks for; better in ${_AUTH_VARIABLE} or --auth-file, which other users of the machine do not see.",
        metavar="USER:PASSWORD", panel=SERVER,
    ),
    auth_file: Path | None = setting(None, "File with USER:PASSWORD.", metavar="FILE", panel=SERVER),
    origin: list[str] | None = setting(
        None, "Another address under which browsers reach the page, such as https://video.example of a proxy; repeatable.",
        metavar="ORIGIN", panel=SERVER,
    ),
    max_seconds: float = _MAX_SECONDS,
) -> None:  # fmt: skip
    """Make videos on a page in the browser; they survive a restart."""
    serving = replace(served.serving(config, "app"), limits=Limits(seconds=max_seconds))
    user = _user(auth, auth_file)
    if (is_shared or host not in _LOCAL) and user is None:
        raise ConfigError(
            f"a password must be given where others can reach the page (--share, --host): ${_AUTH_VARIABLE}, --auth-file or "
            "--auth"
        )
    try:
        import gradio  # noqa: F401

        from ..app.admission import Login
        from ..app.running import serve_page
    except ImportError as error:
        if error.name is not None:
            raise ConfigError(f"isoframe app needs {error.name}; pip install 'isoframe[app]'") from error
        raise _proxy_error(error) from error
    except Exception as error:
        raise _proxy_error(error) from error

    with serve_page(
        serving, host=host, port=port, is_opened=is_opened, is_shared=is_shared,
        login=None if user is None else Login(*user), origins=origin or (),
    ) as address:  # fmt: skip
        echo(f"{address} is the page; Ctrl-C stops, and videos go on at the next start")
        threading.Event().wait()


def _proxy_error(error: Exception) -> ConfigError:
    """Gradio makes a client of the network when it is imported, which reads the proxies of the environment."""
    return ConfigError(
        f"the page's library cannot be loaded: {error}; see ALL_PROXY, HTTPS_PROXY and HTTP_PROXY in the environment"
    )


def _user(auth: str | None, auth_file: Path | None) -> tuple[str, str] | None:
    """User and password: of the option, else of the file, else of the environment; None if nobody is asked."""
    if auth is None and auth_file is not None:
        try:
            auth = auth_file.expanduser().read_text("utf-8").rstrip("\r\n")
        except ValueError as error:
            raise ConfigError(f"--auth-file {auth_file} must be text") from error
    if auth is None:
        auth = os.environ.get(_AUTH_VARIABLE) or None
    if auth is None:
        return None
    user, colon, password = auth.partition(":")
    # Gradio compares names without the spaces around them.
    if not user.strip() or not colon or not password or "\n" in auth:
        raise ConfigError(
            f"the password of the page must be USER:PASSWORD (--auth, --auth-file, ${_AUTH_VARIABLE})"
        )
    return user.strip(), password
