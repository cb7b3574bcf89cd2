"""A request turned into sections of video: models are found and loaded, then prompts encoded, latents sampled and decoded.

Imports jobs and below. The engine and the interfaces use ``model_lookup.find_model``,
``loaded_model.LoadedModel`` and ``generation.open_generation``.
"""
