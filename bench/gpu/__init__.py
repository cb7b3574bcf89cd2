"""Everything on a rented GPU within a given time: ``bench gpu`` and ``tune``; needs torch and Triton, and little else.

May import every other room of bench. Outside: ``argparse_commands.COMMANDS``, for ``python -P -m isoframe.bench``.
"""
