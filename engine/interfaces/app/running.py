"""The app on its way: model, service, page, and a server until somebody stops it."""

import os
import shutil
import threading
import webbrowser
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from ...demo import EXAMPLES, list_examples
from ...errors import InputError
from ...files import make_folder
from ..server.http.guard import Access, Guard
from ..server.http.listening import address, bind, make_server
from ..server.http.uploads import BodyLimit
from ..server.videos.workers import LocalWorkers
from .admission import Login, OwnPosts
from .page import CSS, build_page
from .shown_files import ShownFiles
from .studio import Studio

if TYPE_CHECKING:
    from ..server.serving import Serving

# Fonts of the system: the default theme would fetch some.
_FONTS = ("system-ui", "sans-serif")
# Guide images come in one request.
_IMAGES_AT_ONCE = 4
_UPLOAD_SECONDS = 300.0


@contextmanager
def serve_page(
    serving: "Serving",
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    is_opened: bool = False,
    is_shared: bool = False,
    login: Login | None = None,
    origins: Iterable[str] = (),
) -> Iterator[str]:
    """Serve the page while the context lasts, to its own origin alone.

    Args:
        serving: model, folder and limits.
        host: address to listen on.
        port: 0 takes any free one.
        is_opened: open the page in the browser.
        is_shared: make a public address through Gradio's tunnel.
        login: the password to ask for.
        origins: further addresses under which browsers reach the page, such as that of a proxy.

    Yields:
        Addresses of the page.

    Raises:
        ConfigError: the page would be open to others without a password.
        InputError: the address or the folder cannot be had, or no public address.
    """
    own_origins = set(origins)
    access = Access(host=host, origins=own_origins, has_login=login is not None)
    # In Gradio's own folder files are served, and served without a copy.
    uploads = serving.data / "uploads"
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    # A port that is taken is told before a model is read.
    with bind(host, port) as listener:
        engine = serving.load()
        with (
            serving.open(LocalWorkers(engine)) as service,
            closing(Studio(service, engine, _shown(uploads))) as studio,
        ):
            examples = list_examples() if engine.components.name == "demo" else []
            page = build_page(studio, examples)
            largest = serving.limits.upload_bytes
            guarded = Guard(OwnPosts(_mount(page, login, largest), uploads), access)
            limited = BodyLimit(guarded, _IMAGES_AT_ONCE * largest, _UPLOAD_SECONDS)
            with _running(limited, listener, page):
                urls = [address(listener)]
                if is_shared:
                    urls.append(_share(page, urls[0]))
                    own_origins.add(urls[-1])
                if is_opened:
                    webbrowser.open(urls[-1])
                yield " and ".join(f"{url}/" for url in urls)


def _shown(uploads: Path) -> ShownFiles:
    """What pages show; whatever an earlier app left of uploads goes."""
    shutil.rmtree(uploads, ignore_errors=True)
    make_folder("uploads", uploads)
    return ShownFiles(uploads / "shown")


def _mount(page: Any, login: Login | None, file_bytes: int) -> ASGIApp:
    """The page as an application that nobody guards yet."""
    import gradio as gr
    from fastapi import FastAPI

    page.queue(default_concurrency_limit=None)
    outer: FastAPI = gr.mount_gradio_app(
        FastAPI(openapi_url=None), page, path="",
        auth=None if login is None else login.admit, max_file_size=file_bytes, allowed_paths=[str(EXAMPLES)],
        # Each of these has a variable of the environment that would open something.
        ssr_mode=False, mcp_server=False, enable_monitoring=False, run_history=False, root_path="",
        show_error=False, footer_links=[],
        theme=gr.themes.Default(font=_FONTS, font_mono=("monospace",)), css=CSS,
    )  # fmt: skip
    # Closing the page ends its streams through this.
    page.app = outer.routes[-1].app  # type: ignore[attr-defined]  # a mount
    return outer


@contextmanager
def _running(app: ASGIApp, listener: Any, page: Any) -> Iterator[None]:
    """Serve ``app`` in a thread while the context lasts."""
    is_up = threading.Event()
    # Streams of a page last until it says that it closes.
    server = make_server(app, on_start=is_up.set, on_stop=lambda: page.close(verbose=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="isoframe-page")
    thread.start()
    try:
        while not is_up.wait(0.1):
            if not thread.is_alive():
                raise InputError("the page's server does not start; its log says why")
        yield
    finally:
        server.should_exit = True
        thread.join()


def _share(page: Any, local: str) -> str:
    """A public address for the page at ``local``."""
    from gradio.networking import setup_tunnel

    host, _, port = local.removeprefix("http://").rpartition(":")
    try:
        url: str = setup_tunnel(host, int(port), page.share_token, None, None)
    except Exception as error:
        raise InputError(f"there is no public address: {error}; leave out --share") from error
    return url.replace("http://", "https://", 1).rstrip("/")
