"""The configuration of the published checkpoints."""

# What lllyasviel/FramePackI2V_HY ships.
PUBLISHED = {
    "_class_name": "HunyuanVideoTransformer3DModelPacked",
    "_diffusers_version": "0.33.0.dev0",
    "_name_or_path": "hunyuanvideo-community/HunyuanVideo",
    "in_channels": 16,
    "out_channels": 16,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_layers": 20,
    "num_single_layers": 40,
    "num_refiner_layers": 2,
    "mlp_ratio": 4.0,
    "patch_size": 2,
    "patch_size_t": 1,
    "qk_norm": "rms_norm",
    "guidance_embeds": True,
    "text_embed_dim": 4096,
    "pooled_projection_dim": 768,
    "rope_theta": 256.0,
    "rope_axes_dim": [16, 56, 56],
    "has_image_proj": True,
    "image_proj_dim": 1152,
    "has_clean_x_embedder": True,
}
