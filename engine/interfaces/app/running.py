"""The app on its way: model, service, page, and a server until somebody stops it."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...demo import EXAMPLES, list_examples
from ...errors import InputError
from ..server.http.listening import bind
from ..server.videos.workers import LocalWorkers
from .page import CSS, build_page
from .shown_files import ShownFiles
from .studio import Studio

if TYPE_CHECKING:
    from ..server.serving import Serving

# Fonts of the system: the default theme would fetch some.
_FONTS = ("system-ui", "sans-serif")


@contextmanager
def serve_page(
    serving: "Serving",
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    is_opened: bool = False,
    is_shared: bool = False,
    auth: tuple[str, str] | None = None,
) -> Iterator[str]:
    """Serve the page while the context lasts.

    Args:
        serving: model, folder and limits.
        host: address to listen on.
        port: 0 takes any free one.
        is_opened: open the page in the browser.
        is_shared: make a public address through Gradio's tunnel.
        auth: user and password to ask for.

    Yields:
        Addresses of the page.

    Raises:
        InputError: the address or the folder cannot be had.
    """
    import gradio as gr
    from gradio.utils import get_upload_folder
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # A page elsewhere could reach this one through a name of its own.
    own_addresses = Middleware(TrustedHostMiddleware, allowed_hosts=[host, "127.0.0.1", "localhost"])
    with bind(host, port) as listener:
        # A port that is taken is told before a model is read; Gradio binds it again itself.
        port = listener.getsockname()[1]
    engine = serving.load()
    # In Gradio's own folder files are served, and served without a copy.
    shown = ShownFiles(Path(get_upload_folder()) / "shown")
    examples = list_examples() if engine.components.name == "demo" else []
    with (
        serving.open(LocalWorkers(engine)) as service,
        closing(Studio(service, engine, shown)) as studio,
        closing(build_page(studio, examples)) as page,
    ):
        try:
            _, local, shared = page.queue(default_concurrency_limit=None).launch(
                server_name=host, server_port=port, inbrowser=is_opened, share=is_shared, auth=auth,
                prevent_thread_lock=True, quiet=True, footer_links=[],
                max_file_size=serving.limits.upload_bytes, allowed_paths=[str(EXAMPLES)],
                app_kwargs={} if is_shared or auth else {"middleware": [own_addresses]},
                theme=gr.themes.Default(font=_FONTS, font_mono=("monospace",)), css=CSS,
            )  # fmt: skip
        except OSError as error:
            raise InputError(f"cannot listen on {host}:{port}: {error}; choose another --port") from error
        yield " and ".join(url for url in (local, shared) if url)
