"""Files of the Hugging Face Hub: downloaded or cached, with errors that say what to do."""

import difflib
import functools
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

_logger = logging.getLogger(__name__)


class NotCachedError(CheckpointError):
    """A file is not in the Hub's cache, and the Hub was not to be asked or could not be reached."""


def is_hub_id(source: str) -> bool:
    """Whether ``source`` reads as "owner/name" or "owner/name@revision"; it may name a local path all the same."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@\w[\w.-]*)?", source) is not None


def split_revision(repository: str) -> tuple[str, str | None]:
    """Name and revision (commit, tag or branch) of a repository; None is its main branch.

    The revision stands behind an "@", else in the table of known repositories.
    """
    name, _, revision = repository.partition("@")
    return name, revision or _data("revisions").get(name)


def commit_of(path: Path) -> str | None:
    """The commit that a file in the Hub's cache belongs to; None for any other file."""
    for folder in path.absolute().parents:
        if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
            return folder.name
    return None


@functools.cache
def _data(name: str) -> dict[str, Any]:
    """A table of known repositories."""
    table: dict[str, Any] = json.loads(
        (Path(__file__).parents[1] / "data" / f"{name}.json").read_text(encoding="utf-8")
    )
    return table


def is_cached(repository: str, filename: str) -> bool:
    """Whether the Hub's cache holds the file; asks no network."""
    import huggingface_hub

    name, revision = split_revision(repository)
    return isinstance(huggingface_hub.try_to_load_from_cache(name, filename, revision=revision), str)


def hub_file(repository: str, filename: str, *, local_files_only: bool) -> Path | None:
    """Local path of one file of a repository, downloaded if it is not cached.

    Returns:
        The path in the Hub's cache, or None where the repository has no such file.

    Raises:
        NotCachedError: not cached while offline.
        CheckpointError: no such repository, or no right to read it.
    """
    import huggingface_hub

    if not local_files_only and not is_cached(repository, filename):
        _announce_license(repository)
    name, revision = split_revision(repository)
    download = partial(huggingface_hub.hf_hub_download, name, filename, revision=revision)
    return _ask(repository, filename, partial(download, local_files_only=local_files_only))


def require_hub_file(repository: str, filename: str, *, local_files_only: bool) -> Path:
    """As :func:`hub_file`; a repository without the file is a :class:`CheckpointError`."""
    path = hub_file(repository, filename, local_files_only=local_files_only)
    if path is None:
        raise CheckpointError(f"{repository} on the Hub has no file {filename}")
    return path


def hub_folder(repository: str, filenames: Sequence[str], *, required: str, local_files_only: bool) -> Path:
    """Local snapshot of ``repository`` with those of ``filenames`` that it has (patterns; the rest is not fetched).

    Args:
        repository: Hub id.
        filenames: paths in the repository, with "*" for any text.
        required: the file without which the snapshot is of no use.
        local_files_only: never ask the Hub.
    """
    import huggingface_hub

    require_hub_file(repository, required, local_files_only=local_files_only)
    name, revision = split_revision(repository)
    download = partial(
        huggingface_hub.snapshot_download, name, allow_patterns=list(filenames), revision=revision
    )
    snapshot = _ask(repository, required, partial(download, local_files_only=local_files_only))
    assert snapshot is not None, "the repository has just given a file"
    return snapshot


def not_cached(repository: str, filename: str) -> NotCachedError:
    """The error for a file that is not in the cache while the Hub cannot be asked."""
    import huggingface_hub.constants

    name, revision = split_revision(repository)
    at = "" if revision is None else f" --revision {revision}"
    folder, slash, _ = filename.rpartition("/")
    if slash:
        # A folder is fetched whole: the file that is missed first is seldom the only one.
        wanted = f' --include "{folder}/*"'
    else:
        wanted = "" if filename.startswith(("config.json", "diffusion_pytorch_model")) else f" {filename}"
    return NotCachedError(
        f"{filename} of {repository} is not in the Hub cache {huggingface_hub.constants.HF_HUB_CACHE}, and the Hub "
        f"was not to be asked or could not be reached. Download it where there is a network: "
        f"hf download {name}{at}{wanted}{_as_path(repository)}"
    )


def nearest_path(source: str) -> str | None:
    """The existing path whose name is nearest to that of ``source``, in the same folder."""
    path = Path(source).expanduser()
    siblings = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else []
    nearest = difflib.get_close_matches(path.name, siblings, n=1, cutoff=0.6)
    return str(path.parent / nearest[0]) if nearest else None


@functools.cache
def _announce_license(repository: str) -> None:
    """Log, once per process, under what licence the files come that are about to be downloaded."""
    name, _ = split_revision(repository)
    terms = _data("licenses").get(name, f"terms at https://huggingface.co/{name}")
    _logger.info("downloading from %s; licence: %s", repository, terms)


def _as_path(repository: str) -> str:
    """The other reading of a Hub id, for errors."""
    nearest = nearest_path(repository)
    hint = f", did you mean {nearest}" if nearest else ""
    return f". (There is no local path {os.path.abspath(repository)} either{hint}.)"


def _ask(repository: str, filename: str, fetch: Callable[[], object]) -> Path | None:
    from huggingface_hub import errors

    # The HTTP library's base error: what a download that breaks off raises.
    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        return Path(str(fetch()))
    except errors.LocalEntryNotFoundError as error:
        raise not_cached(repository, filename) from error
    except errors.EntryNotFoundError:
        return None
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is gated: accept its terms at https://huggingface.co/{repository}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repository.partition('@')[0]} on the Hub has no revision {split_revision(repository)[1]}; take a commit, tag "
            "or branch of it"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"the Hub has no repository {repository} that this machine may read; check the spelling, or log in with "
            f"`hf auth login` if it is private{_as_path(repository)}"
        ) from error
    except errors.HFValidationError as error:
        raise CheckpointError(f"{repository!r} is not a Hub id: {error}") from error
    except (http_error, OSError) as error:
        raise CheckpointError(
            f"{filename} of {repository} could not be downloaded: {error}; try again"
        ) from error
