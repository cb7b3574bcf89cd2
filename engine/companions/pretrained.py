"""Models of transformers and diffusers, loaded quietly, completely and one at a time."""

import contextlib
import threading
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointError, count_problems
from ..files import read_json

# While transformers and diffusers load a model, they change torch for all threads: the initializers of parameters, the
# device that they are made on and the default dtype. Two loads at once left parameters without data.
LOADING = threading.RLock()
# More than any encoder has: all layers are made before a missing tensor is noticed.
_MAX_LAYERS = 1000
# Where transformers and diffusers look for the names of classes.
_CONFIGS = (
    "config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "generation_config.json",
    "model_index.json",
)


def load_pretrained(
    model_class: Any, folder: Path, device: torch.device, *, is_exact: bool = False, **options: Any
) -> Any:
    """A model with the weights in ``folder``, ready to compute on ``device``.

    Args:
        model_class: of transformers or diffusers.
        folder: with config and weights.
        device: where it goes.
        is_exact: refuse tensors that the class does not know.
        options: of ``from_pretrained``, such as the dtype.

    Raises:
        CheckpointError: the files are damaged, or not those of the class.
    """
    check_configs(folder)
    name, library = model_class.__name__, model_class.__module__.partition(".")[0]
    if library == "transformers":
        options["trust_remote_code"] = False
    with quiet(library):
        try:
            model, report = model_class.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
        except (
            OSError,
            ValueError,
            RuntimeError,
            TypeError,
            LookupError,
            AttributeError,
            ArithmeticError,
        ) as error:
            raise CheckpointError(f"{folder} cannot be loaded as {name}: {error}") from error
    problems = {"missing": sorted(report["missing_keys"])}
    if is_exact:
        problems["unknown"] = sorted(report["unexpected_keys"])
    if found := count_problems(problems):
        raise CheckpointError(
            f"the tensors in {folder} are not those of {name}: {found}; download it again, or correct its config.json"
        )
    return model.eval().to(device)


def check_configs(folder: Path) -> None:
    """Raise :class:`CheckpointError` where a configuration in ``folder`` names code to be run, or is damaged."""
    for path in sorted(path for path in folder.glob("*.json") if path.name in _CONFIGS):
        config = read_json(path)
        if "auto_map" in config:
            raise CheckpointError(
                f"{path} names code of its own (auto_map), which is never run; give a folder of a class that "
                "transformers or diffusers bring"
            )
        for name, value in config.items():
            if "layers" in name and isinstance(value, int | float) and value > _MAX_LAYERS:
                raise CheckpointError(f"{path}: {name} must be at most {_MAX_LAYERS}, got {value!r}")


@contextlib.contextmanager
def quiet(library: str) -> Iterator[None]:
    """Keep the bars and reports of transformers or diffusers out of the terminal, and leave their settings as they were.

    What they would warn of is an error here.
    """
    logging = import_module(f"{library}.utils.logging")
    verbosity, has_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if has_bars:
            logging.enable_progress_bar()
