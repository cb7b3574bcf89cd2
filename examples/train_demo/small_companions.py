"""The demo's small companions: word-level tokenizers and frozen, randomly initialized encoders.

Random encoders are enough: a fixed random network tells any two prompts or images apart, and the transformer
learns to read it.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isoframe.bench.quality.world import COLORS, MOTIONS, SHAPES

TEXT_WIDTH = 96
POOLED_WIDTH = 64
IMAGE_WIDTH = 64
IMAGE_SIZE = 64
_PAD, _BOS, _EOS, _UNKNOWN = "<pad>", "<bos>", "<eos>", "<unk>"
_VOCABULARY_SIZE = 64
# CLIP pools at the first end token; transformers treats the id 2 as an old special case.
_CLIP_EOS_ID = _VOCABULARY_SIZE - 1
_CLIP_LENGTH = 77
_LLAMA_LENGTH = 512
_PIPELINE = {
    "_class_name": "HunyuanVideoFramepackPipeline",
    "_diffusers_version": "0.36.0",
    "feature_extractor": ["transformers", "SiglipImageProcessor"],
    "image_encoder": ["transformers", "SiglipVisionModel"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "LlamaModel"],
    "text_encoder_2": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
    "tokenizer_2": ["transformers", "PreTrainedTokenizerFast"],
    "transformer": ["diffusers", "HunyuanVideoFramepackTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLHunyuanVideo"],
}


def vocabulary() -> tuple[str, ...]:
    """Every word of the world's prompts, special words first; the position is the id."""
    words = [
        _PAD,
        _BOS,
        _EOS,
        _UNKNOWN,
        "a",
        "an",
        "the",
        "and",
        "slowly",
        "quickly",
        "big",
        "small",
        ".",
        ",",
    ]
    words += [*COLORS, *SHAPES, *(word for motion in MOTIONS for word in motion.split())]
    return tuple(dict.fromkeys(words))


def build_tokenizer(*, eos_id: int | None = None, pad: str = _PAD, max_length: int = _LLAMA_LENGTH) -> Any:
    """A lower-casing word tokenizer that adds ``<bos>`` and ``<eos>``; ``eos_id`` moves the id of ``<eos>``."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(vocabulary())}
    ids[_EOS] = ids[_EOS] if eos_id is None else eos_id
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A {_EOS}", special_tokens=[(_BOS, ids[_BOS]), (_EOS, ids[_EOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=_BOS,
        eos_token=_EOS,
        unk_token=_UNKNOWN,
        padding_side="right",
        model_max_length=max_length,
    )


def build_encoders(seed: int) -> dict[str, Any]:
    """The LLaMA, CLIP and SigLIP encoders, by the names of their folders."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        LlamaConfig,
        LlamaModel,
        SiglipVisionConfig,
        SiglipVisionModel,
    )

    llama = LlamaConfig(
        vocab_size=_VOCABULARY_SIZE,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=_LLAMA_LENGTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    clip = CLIPTextConfig(
        vocab_size=_VOCABULARY_SIZE,
        hidden_size=POOLED_WIDTH,
        intermediate_size=2 * POOLED_WIDTH,
        projection_dim=POOLED_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=_CLIP_LENGTH,
        pad_token_id=_CLIP_EOS_ID,
        bos_token_id=1,
        eos_token_id=_CLIP_EOS_ID,
    )
    siglip = SiglipVisionConfig(
        hidden_size=IMAGE_WIDTH,
        intermediate_size=2 * IMAGE_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=16,
    )
    encoders = {
        "text_encoder": LlamaModel(llama),
        "text_encoder_2": CLIPTextModel(clip),
        "image_encoder": SiglipVisionModel(siglip),
    }
    generator = torch.Generator().manual_seed(seed)
    for encoder in encoders.values():
        _randomize(encoder, generator)
    return encoders


@torch.no_grad()
def _randomize(encoder: nn.Module, generator: torch.Generator) -> None:
    """Weights wide enough that embeddings are of order one and attention is not flat; see the module's head."""
    for name, parameter in sorted(encoder.named_parameters()):
        if parameter.ndim < 2:
            parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            continue
        is_table = parameter.ndim == 2 and "embed" in name
        std = 0.3 if "position" in name else 1.0
        if not is_table:
            std = 1 / math.sqrt(parameter[0].numel())
        parameter.normal_(0, std, generator=generator)


def save_companions(folder: Path, *, seed: int) -> None:
    """Write everything but the transformer and the VAE into the pipeline folder ``folder``, weights in fp16."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from transformers import SiglipImageProcessor

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(_PIPELINE, indent=2) + "\n")
    build_tokenizer().save_pretrained(folder / "tokenizer")
    clip_tokenizer = build_tokenizer(eos_id=_CLIP_EOS_ID, pad=_EOS, max_length=_CLIP_LENGTH)
    clip_tokenizer.save_pretrained(folder / "tokenizer_2")
    for name, encoder in build_encoders(seed).items():
        encoder.half().save_pretrained(folder / name)
    processor = SiglipImageProcessor(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    processor.save_pretrained(folder / "feature_extractor")
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")


def write_profile(folder: Path, *, latent_rgb: list[list[float]]) -> None:
    """Write ``isoframe.json``: what no other file of the pipeline folder says."""
    profile = {
        "buckets": [[IMAGE_SIZE, IMAGE_SIZE]],
        "order": "both",
        "prompt_template": "{}",
        "crop_start": 0,
        "latent_rgb": latent_rgb,
    }
    (folder / "isoframe.json").write_text(json.dumps(profile, indent=2) + "\n")
