"""Watch the calls of a method, or put another in its place, for the length of a block."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any


@contextmanager
def observe(owner: type, name: str, tell: Callable[[tuple[Any, ...], Any], None]) -> Iterator[None]:
    """Inside the block, ``tell`` gets positional arguments (self included) and result of every call of a method."""
    original = getattr(owner, name)

    def observed(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        tell(args, result)
        return result

    with replace(owner, name, observed):
        yield


@contextmanager
def replace(owner: type | ModuleType, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Inside the block, ``function`` is the method or function ``name`` of ``owner``."""
    original = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, original)
