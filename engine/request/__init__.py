"""What is asked for: requests, their sections, prompts, guides and packing schedules.

Imports the base alone. Everything uses ``config.Request``, ``config.EngineConfig`` and
``sections.plan_sections``.
"""
