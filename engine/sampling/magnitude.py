"""Magnitude ratios: how the residual of the block stack grows from step to step, and which steps that lets one skip.

MagCache (arXiv 2506.09045) observes that the ratio of the norms of consecutive residuals depends on the step and hardly
on prompt or image. Measured once for a checkpoint, the ratios tell before the first step which steps may reuse an
earlier residual.
"""

import json
import logging
import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from ..errors import ConfigError
from ..files import parse_json, write_durably
from ..request.config import SamplingConfig

_logger = logging.getLogger(__name__)

_SHIPPED = Path(__file__).parents[1] / "data" / "magcache.json"
# A step whose residual changes by more is computed, whatever the budget (published constant).
_MAX_CHANGE = 0.06

# Whether each step is skipped.
SkipSchedule = tuple[bool, ...]


def skip_schedule(ratios: Sequence[float], sampling: SamplingConfig) -> SkipSchedule:
    """The steps that MagCache skips.

    The first ``step_cache_retention`` of all steps are computed. After that, each step since the last computed one
    adds ``|1 - product of the ratios since then|`` to an error; it is skipped while the error is at most
    ``step_cache_threshold``, at most ``step_cache_max_skips`` in a row, and only if its own ratio is within 0.06 of 1.

    Args:
        ratios: of any number of steps, the first one 1; other step counts take the nearest.
        sampling: number of steps and budget.
    """
    first = max(int(sampling.step_cache_retention * sampling.num_steps), 1)
    schedule = []
    product, error, num_skips = 1.0, 0.0, 0
    for step, ratio in enumerate(nearest_ratios(ratios, sampling.num_steps)):
        product *= ratio
        error += abs(1 - product)
        num_skips += 1
        is_skipped = (
            step >= first
            and error <= sampling.step_cache_threshold
            and num_skips <= sampling.step_cache_max_skips
            and abs(1 - ratio) <= _MAX_CHANGE
        )
        schedule.append(is_skipped)
        if not is_skipped:
            product, error, num_skips = 1.0, 0.0, 0
    return tuple(schedule)


def nearest_ratios(ratios: Sequence[float], num_steps: int) -> list[float]:
    """``ratios`` for another number of steps: the nearest by position; one step takes the last."""
    if num_steps == 1:
        return [ratios[-1]]
    scale = (len(ratios) - 1) / (num_steps - 1)
    return [ratios[round(step * scale)] for step in range(num_steps)]


def find_ratios(
    config: object, order: str, *, model: str, model_hash: str, cache_dir: Path
) -> tuple[float, ...]:
    """The ratios measured on this machine for a checkpoint, else those shipped for its architecture and order.

    Args:
        config: sizes of the transformer.
        order: "inverted" or "forward".
        model: what the command line calls it.
        model_hash: source hash of the transformer.
        cache_dir: folder of what was measured.

    Raises:
        ConfigError: there are none; the message names the command that measures them.
    """
    path = measured_path(cache_dir, model_hash, order)
    if path.is_file():
        return _read_measured(path)
    for entry in json.loads(_SHIPPED.read_text(encoding="utf-8")):
        sizes = entry["architecture"].items()
        if entry["order"] == order and all(getattr(config, key) == value for key, value in sizes):
            _logger.debug("magcache: ratios of %s, order %s", entry["model"], order)
            return tuple(entry["ratios"])
    raise ConfigError(
        f"step_cache='magcache' needs the magnitude ratios of {model} in order {order}, and there are none; measure "
        f"them with: isoframe bench magcache --model {shlex.quote(model)} --order {order}"
    )


def measured_path(cache_dir: Path, model_hash: str, order: str) -> Path:
    """File of the ratios measured for a checkpoint in an order."""
    return cache_dir / "magcache" / f"{model_hash}-{order}.json"


def write_measured(path: Path, ratios: Sequence[float], *, model: str, source: str) -> None:
    """Keep measured ratios; ``source`` says how they were measured."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"model": model, "source": source, "ratios": list(ratios)}
    write_durably(path, json.dumps(content, indent=2).encode())


def _read_measured(path: Path) -> tuple[float, ...]:
    try:
        ratios = tuple(map(float, parse_json(path.read_bytes())["ratios"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the magnitude ratios in {path} cannot be read ({error}); delete the file"
        ) from error
    if not ratios or not all(math.isfinite(ratio) and ratio > 0 for ratio in ratios):
        raise ConfigError(f"the magnitude ratios in {path} must be positive numbers; delete the file")
    _logger.debug("magcache: ratios measured in %s", path)
    return ratios
