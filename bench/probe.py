"""Watch the calls of a method without changing what it does."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def observe(owner: type, name: str, tell: Callable[[tuple[Any, ...], Any], None]) -> Iterator[None]:
    """Inside the block, ``tell`` gets positional arguments (self included) and result of every call of a method."""
    original = getattr(owner, name)

    def observed(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        tell(args, result)
        return result

    setattr(owner, name, observed)
    try:
        yield
    finally:
        setattr(owner, name, original)
