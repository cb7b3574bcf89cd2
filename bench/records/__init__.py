"""Results: rows with everything needed to judge and repeat them, and pages and comparisons made of rows.

Imports nothing else of bench. Outside: ``rows.BenchRow``, ``make_rows`` and ``Gate``, ``html_page.write_report``.
"""
