"""What the frozen encoders make of prompts and start images, computed as the engine computes it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTable:
    """Embeddings of a list of prompts.

    Attributes:
        rows: row of each prompt.
        text_embeds: [P, L, E], zero where the mask is false.
        text_mask: [P, L] bool.
        pooled_embeds: [P, D].
    """

    rows: dict[str, int]
    text_embeds: Tensor
    text_mask: Tensor
    pooled_embeds: Tensor


class DemoEncoders:
    """The encoders of a pipeline folder written by ``save_companions``, in fp32.

    They are read back from the file so that training sees the same fp16-rounded weights as the engine.
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoTokenizer, CLIPTextModel, LlamaModel, SiglipVisionModel

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder / "tokenizer")
        self._tokenizer_2: Any = AutoTokenizer.from_pretrained(folder / "tokenizer_2")
        self._llama = _frozen(LlamaModel, folder / "text_encoder")
        self._clip = _frozen(CLIPTextModel, folder / "text_encoder_2")
        self._siglip = _frozen(SiglipVisionModel, folder / "image_encoder")

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> PromptTable:
        """LLaMA states below the last two layers for each token, and CLIP's pooled vector, of every prompt."""
        tokens = self._tokenizer(list(prompts), padding=True, return_tensors="pt")
        states = self._llama(**tokens, output_hidden_states=True).hidden_states[-3]
        mask = tokens["attention_mask"].bool()
        clip_tokens = self._tokenizer_2(
            list(prompts), padding="max_length", truncation=True, return_tensors="pt"
        )
        pooled = self._clip(input_ids=clip_tokens["input_ids"]).pooler_output
        return PromptTable(
            rows={prompt: row for row, prompt in enumerate(prompts)},
            text_embeds=states.float() * mask[..., None],
            text_mask=mask,
            pooled_embeds=pooled.float(),
        )

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Image tokens [B, I, V] of ``images`` [B, 3, H, W] in [-1, 1], at the encoder's own size."""
        # The engine reads 8-bit images.
        pixels = ((images * 0.5 + 0.5) * 255).round() / 255
        states: Tensor = self._siglip(pixel_values=pixels * 2 - 1).last_hidden_state
        return states.float()


def _frozen(model_class: Any, folder: Path) -> Any:
    return model_class.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
