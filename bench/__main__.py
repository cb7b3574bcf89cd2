"""The measurements as a program: ``python -P -m isoframe.bench``, also ``isoframe bench``."""

import sys

from .gpu.argparse_commands import COMMANDS

if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        sys.exit(COMMANDS[sys.argv[1]](sys.argv[2:]))
    from .commands import app

    app(prog_name="isoframe bench")
