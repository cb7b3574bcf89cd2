"""Jobs that last: the queue that they wait in, and their folder on the disk with record, log and finished sections.

Imports media, sampling and below. Others use ``job.Job``, ``folder.JobFolder`` and ``state.JobState``.
"""
