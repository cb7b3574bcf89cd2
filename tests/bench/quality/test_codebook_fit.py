"""``isoframe codebook``: k-means finds what is there, and the command line has it from an entry point."""

import tomllib
from pathlib import Path

import pytest
import torch

from isoframe.bench.quality.codebook_fit import fit_codebook
from isoframe.engine import InputError

ROOT = Path(__file__).resolve().parents[3]


def test_k_means_finds_separate_clusters_and_repeats_itself() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    points = (centres[:, None] + 0.1 * torch.randn(3, 50, 2)).flatten(0, 1)
    fitted = fit_codebook(points, 3, seed=2)
    assert torch.cdist(centres, fitted).amin(dim=1).max() < 0.1
    assert torch.equal(fitted, fit_codebook(points, 3, seed=2))
    assert torch.allclose(fit_codebook(points, 1)[0], points.mean(dim=0), atol=1e-5)
    many = fit_codebook(points, 150)
    assert torch.cdist(points, many).amin(dim=1).mean() < 0.05
    with pytest.raises(InputError, match="from 1 to 150 centroids for so many points, got 151"):
        fit_codebook(points, 151)


def test_the_command_is_an_entry_point_of_the_command_line() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    commands = project["entry-points"]["isoframe.commands"]
    assert commands["codebook"] == "isoframe.bench.quality.command:codebook"
