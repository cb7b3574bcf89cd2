"""The distribution contains every package and every data file."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
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
    extras = project["optional-dependencies"]
    requirements = [Requirement(text) for text in (*project["dependencies"], *extras["dev"])]
    own = [
        name for requirement in requirements if requirement.name == "isoframe" for name in requirement.extras
    ]
    # What only `make soak` installs.
    requirements += [Requirement(text) for name in (*own, "ray") for text in extras[name]]
    # The Windows build of Triton has its own release numbers and is not installed elsewhere.
    for requirement in (r for r in requirements if r.name not in ("triton-windows", "isoframe")):
        version = pinned()[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} against {version}"


def test_constraints_name_versions_only() -> None:
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for line in text.splitlines():
        assert re.fullmatch(r"#.*|[a-z0-9-]+==[0-9.]+(post[0-9]+)?", line), line


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the checkout stays clean."""
    source, output = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source / name)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(output)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True, timeout=120)
    return next(output.glob("*.whl"))


def wanted_files() -> set[str]:
    """Every module and data file of the four folders, as named in the wheel."""
    patterns = ("*.py", "py.typed", "data/*.html", "data/*.json", "demo/weights/**/*", "demo/examples/*")
    return {
        f"isoframe/{path.relative_to(ROOT).as_posix()}"
        for folder in FOLDERS
        for pattern in patterns
        for path in (ROOT / folder).rglob(pattern)
        if path.is_file()
    }


def test_wheel_holds_every_module_the_data_and_the_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    information = {name for name in names if ".dist-info/" in name}
    assert names - information == wanted_files()
    assert "isoframe/engine/demo/weights/transformer/diffusion_pytorch_model.safetensors" in names
    assert {name.rpartition("/")[2] for name in information} >= {"LICENSE", "NOTICE", "entry_points.txt"}


def test_wheel_is_at_most_30_mb(wheel: Path) -> None:
    assert wheel.stat().st_size <= 30 * 10**6


def test_wheel_alone_answers_with_its_version_and_every_command(
    wheel: Path, tmp_path: Path, pyproject: dict[str, Any]
) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)

    def run(*arguments: str) -> str:
        command = [sys.executable, "-P", "-m", "isoframe.engine.interfaces.commands", *arguments]
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        result = subprocess.run(
            command, env=environment, cwd=tmp_path, check=True, capture_output=True, text=True, timeout=60
        )
        return result.stdout

    assert run("--version") == f"isoframe {pyproject['project']['version']}\n"
    for command in ("generate", "demo", "doctor", "info", "bench"):
        assert command in run("--help")
    assert "forward" in run("bench", "--help")
