"""The measurements as a program: ``python -P -m isoframe.bench``, also ``isoframe bench``."""

import sys

if __name__ == "__main__":
    if sys.argv[1:2] == ["gpu"]:
        from .gpu_main import main

        sys.exit(main(sys.argv[2:]))
    from .commands import app

    app(prog_name="isoframe bench")
