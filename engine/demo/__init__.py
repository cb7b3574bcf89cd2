"""The demo model: its weights, and the example images that it knows with what happens to them.

May import request. Outside: ``EXAMPLES``, ``list_examples``, ``find_example``; how it was trained is in ``examples/train_demo``.
"""

import json
from pathlib import Path

from ..request.config import check_choice

EXAMPLES = Path(__file__).resolve().parent / "examples"


def list_examples() -> list[tuple[str, str]]:
    """Image files and prompts of all built-in examples."""
    prompts: dict[str, str] = json.loads((EXAMPLES / "prompts.json").read_text(encoding="utf-8"))
    return [(str(EXAMPLES / file), prompt) for file, prompt in prompts.items()]


def find_example(name: str | None) -> tuple[Path, str]:
    """Image and prompt of a built-in example; None is the first."""
    by_stem = {Path(file).stem: (Path(file), prompt) for file, prompt in list_examples()}
    if name is None:
        name = next(iter(by_stem))
    check_choice("--example", name, by_stem)
    return by_stem[name]
