"""Files of the Hugging Face Hub: downloaded or cached, with errors that say what to do."""

import logging
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from .errors import CheckpointError

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


def is_hub_id(source: str) -> bool:
    """Whether ``source`` reads as "owner/name"; it may name a local path all the same."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source) is not None


def hub_file(repository: str, filename: str, *, local_files_only: bool) -> Path | None:
    """Local path of one file of a repository, downloaded if it is not cached.

    Returns:
        The path in the Hub's cache, or None where the repository has no such file. Offline, a file that is not
        cached is None as well: the caller knows whether it needs it (:func:`not_cached` words the error).
    """
    import huggingface_hub

    return _ask(
        repository,
        lambda: Path(
            huggingface_hub.hf_hub_download(repository, filename, local_files_only=local_files_only),
        ),
    )


def hub_folder(repository: str, patterns: Sequence[str], *, local_files_only: bool) -> Path | None:
    """Local snapshot of the files of ``repository`` that match ``patterns``; None offline and not cached."""
    import huggingface_hub

    return _ask(
        repository,
        lambda: Path(
            str(
                huggingface_hub.snapshot_download(
                    repository, allow_patterns=list(patterns), local_files_only=local_files_only
                )
            )
        ),
    )


def not_cached(repository: str, what: str, include: str = "") -> CheckpointError:
    """The error for ``what`` of ``repository`` that is absent on the Hub, or not cached while offline."""
    import huggingface_hub.constants

    command = f"hf download {repository}" + (f' --include "{include}"' if include else "")
    return CheckpointError(
        f"{what} of {repository} is not in the Hub cache ({huggingface_hub.constants.HF_HUB_CACHE}) and could not "
        f"be fetched: offline, or the repository has no such file. Download it where there is a network: {command}"
    )


def _ask(repository: str, fetch: Callable[[], _Result]) -> _Result | None:
    from huggingface_hub import errors

    try:
        return fetch()
    except errors.GatedRepoError as error:
        raise CheckpointError(
            f"{repository} is gated: accept its terms at https://huggingface.co/{repository}, then log in with "
            "`hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repository} is neither a local path nor a repository on the Hub that this machine may read; "
            "check the spelling, and log in with `hf auth login` if it is private"
        ) from error
    except errors.EntryNotFoundError as error:
        _logger.debug("%s: %s", repository, error)
        return None
    except errors.HFValidationError as error:
        raise CheckpointError(f"{repository!r} is not a Hub id: {error}") from error
    except errors.HfHubHTTPError as error:
        raise CheckpointError(f"the Hub refused a file of {repository}: {error}") from error
