"""All videos of a service in SQLite: rebuilt from the job folders at every start, which are the truth."""

import json
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from .live_job import VideoFailure, VideoStatus

_TABLE = """
CREATE TABLE videos (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT UNIQUE NOT NULL,
    state TEXT NOT NULL,
    status TEXT NOT NULL
)
"""


class VideoIndex:
    """Every method may be called from any thread."""

    def __init__(self, path: Path, videos: Iterable[VideoStatus]) -> None:
        """A new index in the file ``path`` of ``videos``, the oldest first."""
        for suffix in ("", "-journal", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        self._lock = threading.Lock()
        self._database = sqlite3.connect(path, check_same_thread=False)
        # It need not survive a crash.
        self._database.execute("PRAGMA synchronous = OFF")
        with self._database:
            self._database.execute(_TABLE)
        for video in videos:
            self.put(video)

    def put(self, video: VideoStatus) -> None:
        """Add a video, or what is new about it."""
        row = (video.id, video.state, json.dumps(asdict(video)))
        with self._lock, self._database:
            self._database.execute(
                "INSERT INTO videos (id, state, status) VALUES (?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET state = excluded.state, status = excluded.status",
                row,
            )

    def remove(self, name: str) -> None:
        """Forget a video."""
        with self._lock, self._database:
            self._database.execute("DELETE FROM videos WHERE id = ?", (name,))

    def get(self, name: str) -> VideoStatus | None:
        """The video of this id."""
        rows = self._rows("SELECT status FROM videos WHERE id = ?", (name,))
        return _parse(rows[0][0]) if rows else None

    def page(self, after: str | None, limit: int, *, is_oldest_first: bool) -> list[VideoStatus]:
        """At most ``limit`` videos in the order in which they came, from the one that follows ``after``."""
        direction, comparison = ("ASC", ">") if is_oldest_first else ("DESC", "<")
        where = "" if after is None else f"WHERE number {comparison} (SELECT number FROM videos WHERE id = ?)"
        rows = self._rows(
            f"SELECT status FROM videos {where} ORDER BY number {direction} LIMIT ?",
            (*([] if after is None else [after]), limit),
        )
        return [_parse(status) for (status,) in rows]

    def counts(self) -> dict[str, int]:
        """Videos by their state in the index."""
        rows = self._rows("SELECT state, COUNT(*) FROM videos GROUP BY state", ())
        return {state: int(count) for state, count in rows}

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        with self._lock:
            self._database.close()

    def _rows(self, query: str, values: tuple[object, ...]) -> list[tuple[str, ...]]:
        with self._lock:
            return self._database.execute(query, values).fetchall()


def _parse(text: str) -> VideoStatus:
    values = json.loads(text)
    failure = values.pop("failure")
    return VideoStatus(**values, failure=None if failure is None else VideoFailure(**failure))
