"""The files that pages show, by names that nobody can guess."""

import secrets
import shutil
import threading
import time
from pathlib import Path

from ...files import link_or_copy

# A browser may still fetch what it was told of this long ago.
_SECONDS_KEPT = 60


class ShownFiles:
    """Hard links in one folder, the only one that is served: beside a video lie its prompt, its latents and its log.

    A link goes when its file has gone and no page was told of it for a minute. Every method may be called from any
    thread.
    """

    def __init__(self, folder: Path, *, seconds_kept: float = _SECONDS_KEPT) -> None:
        """Links in ``folder``, which is emptied first.

        Args:
            folder: of these links alone; created.
            seconds_kept: how long a link outlives its file.
        """
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self._folder, self._seconds_kept = folder, seconds_kept
        self._lock = threading.Lock()
        # Of every file (another one under the same name is another file) its link, and when a page was last told of it.
        self._links: dict[tuple[Path, int, int], tuple[Path, float]] = {}

    def show(self, path: Path) -> Path:
        """The link of a file, the same one each time.

        Raises:
            FileNotFoundError: the file has gone.
        """
        stat = path.stat()
        key = (path, stat.st_ino, stat.st_mtime_ns)
        with self._lock:
            self._drop_gone()
            link, _ = self._links.get(key, (None, 0.0))
            # Gradio removes what is older than some hours.
            if link is None or not link.exists():
                link = self._folder / secrets.token_hex(16) / path.name
                link.parent.mkdir()
                link_or_copy(path, link)
            self._links[key] = link, time.monotonic()
        return link

    def _drop_gone(self) -> None:
        oldest = time.monotonic() - self._seconds_kept
        for key, (link, told) in list(self._links.items()):
            if told < oldest and not key[0].exists():
                del self._links[key]
                shutil.rmtree(link.parent, ignore_errors=True)
