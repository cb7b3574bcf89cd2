"""The models beside the transformer: text and image encoders, VAE, previews.

May import weights and all below. Others use ``components.find_components``, ``encoders.Encoders`` and ``vae.VideoVAE``.
"""
