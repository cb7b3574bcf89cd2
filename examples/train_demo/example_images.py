"""Start images with prompts: ``python -P -m train_demo.example_images FOLDER``."""

import argparse
import json
import random
from collections.abc import Mapping
from pathlib import Path

import torch

from isoframe.bench.quality.world import Scene, render, sample_scene

SIZE = 256
# Name of the image: colour, shape and motion.
EXAMPLES = {
    "bounce": ("red", "circle", "bounces"),
    "right": ("yellow", "star", "moves right"),
    "spin": ("white", "square", "spins"),
    "grow": ("purple", "triangle", "grows"),
    "up": ("blue", "square", "moves up"),
    "shrink": ("orange", "star", "shrinks"),
}


def example_scenes() -> dict[str, Scene]:
    """The scene of every example, by name."""
    return {
        name: sample_scene(random.Random(f"example-{name}"), motion=motion, shape=shape, color=color)
        for name, (color, shape, motion) in EXAMPLES.items()
    }


def write_examples(scenes: Mapping[str, Scene], folder: Path) -> None:
    """Write frame 0 of every scene as a PNG, and ``prompts.json``: the prompt of each file."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for name, scene in scenes.items():
        frame = render(scene, torch.zeros(1), size=SIZE)[:, 0]
        pixels = ((frame * 0.5 + 0.5) * 255).round().to(torch.uint8).permute(1, 2, 0)
        Image.fromarray(pixels.numpy()).save(folder / f"{name}.png")
    prompts = {f"{name}.png": scene.prompt for name, scene in scenes.items()}
    (folder / "prompts.json").write_text(json.dumps(prompts, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Entry point of the command."""
    parser = argparse.ArgumentParser(description="Write the demo's example images and prompts.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--name", action="append", choices=tuple(EXAMPLES), help="only this one; repeatable")
    options = parser.parse_args()
    scenes = example_scenes()
    write_examples({name: scenes[name] for name in options.name or EXAMPLES}, options.folder)


if __name__ == "__main__":
    main()
