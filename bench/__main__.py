"""The measurements as a program: ``python -P -m isoframe.bench``, also ``isoframe bench``."""

from .commands import app

if __name__ == "__main__":
    app(prog_name="isoframe bench")
