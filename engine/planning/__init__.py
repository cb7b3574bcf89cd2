"""What a job needs and what the machine has: bytes, seconds and the plan made of both. Planning needs no torch.

May import base, request, model and the interface of the families. Others use ``budget.make_plan`` with a
``planned_job.PlannedJob`` and a ``machine.Machine``.
"""
