"""What is measured: models, jobs and inputs of any shape with random weights, made without a download.

Imports nothing else of bench. Outside: ``random_model``, ``random_job.RandomJob``, ``single_step.isoframe_step``.
"""
