"""Does every second of video cost the same: ``bench constant``.

May import meters, subjects, operations and records. Outside: ``claims.measure_constant``, ``claim_rows.constant_rows``.
"""
