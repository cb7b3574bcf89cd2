"""What fits into how much memory, and what does it cost: ``bench budgets``, ``ram``, ``vram`` and ``predict``.

One job, one probe in a fresh process and one outcome serve all four; the planner answers where nothing runs. May import
meters, subjects, operations and records. Outside: ``point.MemoryJob`` and ``Outcome``, ``ceilings.CeilingSearch``.
"""
