"""The models beside the transformer: text and image encoders, VAE, previews."""
