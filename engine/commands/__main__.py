"""``python -P -m isoframe.engine.commands``, for shells that do not find the ``isoframe`` script."""

from . import main

main()
