"""The loop over sections and steps, and what it carries along: the noise schedule, finished latents, the step cache.

Imports companions and below. Others use ``denoiser.Denoiser``, ``history.History`` and
``step_cache.StepCache``.
"""
