"""What is read off a process and its device: time, memory, traffic, counts, owners of tensors, accuracy.

May import subjects. Outside: ``job_cost.CostRecorder``, ``memory_timeline.MemoryTimeline``, ``accuracy.relative_rms``.
"""
