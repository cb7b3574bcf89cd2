"""Jobs that last: queue, folder on disk, record, log."""
