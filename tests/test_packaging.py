"""The distribution contains every package and every data file."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("bench", "engine", "kernels", "quant")


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_listed_packages_are_the_folders_with_an_init(pyproject: dict[str, Any]) -> None:
    found = {
        ".".join(("isoframe", *init.parent.relative_to(ROOT).parts))
        for folder in FOLDERS
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert sorted(pyproject["tool"]["setuptools"]["packages"]) == sorted(found)


@pytest.mark.parametrize("folder", FOLDERS)
def test_package_is_typed_and_linked(folder: str) -> None:
    assert (ROOT / folder / "py.typed").is_file()
    assert (ROOT / ".src/isoframe" / folder).resolve() == ROOT / folder


def test_root_is_not_importable() -> None:
    assert not (ROOT / "__init__.py").exists()
    assert not (ROOT / "conftest.py").exists()


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def test_constraints_pin_a_version_inside_every_range(pyproject: dict[str, Any]) -> None:
    project = pyproject["project"]
    requirements = [
        Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["dev"])
    ]
    # The Windows build of Triton has its own release numbers and is not installed elsewhere.
    for requirement in (r for r in requirements if r.name != "triton-windows"):
        version = pinned()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_constraints_name_versions_only() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[0-9.]+(post[0-9]+)?", line), line
