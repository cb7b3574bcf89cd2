"""The ``isoframe`` command: one file for each sub-command, or for a few that belong together.

Imports the app, the server, the engine and below. The entry point of the package is ``main``; the sub-commands
are put together by ``command_line.build_app``.
"""

import signal
import sys
import traceback
from types import TracebackType

from .terminal.interrupt import lasting_interrupt

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process."""
    try:
        with lasting_interrupt() as interrupt:
            try:
                # Before typer is imported, which keeps the hook that it finds.
                sys.excepthook = _print_traceback
                for stream in (sys.stdout, sys.stderr):
                    # What the terminal cannot encode is shown as an escape; not every program's streams can change.
                    if hasattr(stream, "reconfigure"):
                        stream.reconfigure(errors="backslashreplace")
                # Imported here, so that Ctrl-C is heard meanwhile.
                from .command_line import build_app

                build_app()(prog_name="isoframe")
            except KeyboardInterrupt:
                sys.stderr.write("cancelled\n")
                sys.exit(interrupt.exit_code)
    finally:
        # Nothing is left to keep, and a traceback from the interpreter's own end would help nobody.
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    from .terminal.printing import printable

    sys.stderr.write(printable("".join(traceback.format_exception(kind, error, trace))))
