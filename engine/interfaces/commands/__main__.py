"""``python -P -m isoframe.engine.interfaces.commands``, for shells that do not find the ``isoframe`` script."""

from . import main

main()
