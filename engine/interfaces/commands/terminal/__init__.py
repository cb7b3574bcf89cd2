"""What the commands share: options, progress bars, failures in words, and Ctrl-C.

Imports the engine and the server. Commands, those of ``bench`` included, use ``command.command``, ``options``
and ``video_command.VideoCommand``.
"""
