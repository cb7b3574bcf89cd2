"""``__all__`` of the four packages is the public interface: complete, sorted, importable."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("engine", "kernels", "quant")
ENGINE_API = {
    "CheckpointError", "Conditioning", "ConfigError", "DeviceError", "Engine", "EngineConfig", "InputError",
    "IsoframeError", "LatentSection", "NumericalError", "Request", "SamplingConfig", "Section", "Video",
}  # fmt: skip


def public_names(package: str) -> list[str]:
    names: list[str] = import_module(f"isoframe.{package}").__all__
    return names


def reading_order(name: str) -> tuple[bool, bool, str]:
    """Constants, classes, functions: the order that ruff keeps in ``__all__``."""
    return not name.isupper(), not name[0].isupper(), name


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_and_has_no_duplicates(package: str) -> None:
    names = public_names(package)
    assert names == sorted(set(names), key=reading_order)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_exists(package: str) -> None:
    module = import_module(f"isoframe.{package}")
    assert [name for name in public_names(package) if getattr(module, name, None) is None] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_imported_name_is_public(package: str) -> None:
    tree = ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.level > 0
        for alias in node.names
    }
    assert imported == set(public_names(package))


def test_engine_offers_what_the_documentation_uses() -> None:
    assert set(public_names("engine")) >= ENGINE_API


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'isoframe\.engine' has no attribute 'Enginee'"):
        import_module("isoframe.engine").Enginee  # noqa: B018  # the access is what is tested
