"""Conditioning that does not fit the checkpoint is refused at once, and the message names the tensor."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import IMAGE_WIDTH, POOLED_WIDTH, TEXT_WIDTH, saved_model

from isoframe.engine import Conditioning, Engine, EngineConfig, InputError, SamplingConfig

MASK = torch.tensor([[True, True, False]])
NEGATIVE = {
    "negative_text_embeds": torch.zeros(1, 2, TEXT_WIDTH),
    "negative_text_mask": torch.ones(1, 2, dtype=torch.bool),
    "negative_pooled_embeds": torch.zeros(1, POOLED_WIDTH),
}


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder: Path = tmp_path_factory.mktemp("transformer")
    saved_model(folder)
    return Engine.load(folder, config=EngineConfig(device="cpu"))


def conditioning(**changes: Any) -> Conditioning:
    valid = Conditioning(
        text_embeds=torch.zeros(1, 3, TEXT_WIDTH),
        text_mask=MASK,
        pooled_embeds=torch.zeros(1, POOLED_WIDTH),
        image_embeds=torch.zeros(1, 5, IMAGE_WIDTH),
        start_latent=torch.zeros(1, 16, 1, 4, 6),
    )
    return dataclasses.replace(valid, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_embeds": torch.zeros(1, 3, 5)}, rf"text_embeds must have the shape \[1, any, {TEXT_WIDTH}\]"),
        ({"text_mask": MASK[:, :2]}, r"text_mask must have the shape \[1, 3\], got \(1, 2\)"),
        ({"text_mask": MASK.flip(1)}, "text_mask must mark valid tokens first"),
        ({"text_mask": MASK & False}, "text_mask must mark valid tokens first, and at least one"),
        ({"pooled_embeds": torch.zeros(1, 5)}, rf"pooled_embeds must have the shape \[1, {POOLED_WIDTH}\]"),
        ({"image_embeds": torch.zeros(5, IMAGE_WIDTH)}, "image_embeds must have the shape"),
        ({"start_latent": torch.zeros(1, 16, 2, 4, 6)}, r"start_latent must have the shape \[1, 16, 1, any, any\]"),
        ({"start_latent": torch.zeros(1, 16, 1, 4, 5)}, r"start_latent must have even height and width, got \(4, 5\)"),
        ({"start_latent": torch.full((1, 16, 1, 4, 6), torch.nan)}, "start_latent must be finite, got NaN or infinity"),
        ({"text_embeds": torch.full((1, 3, TEXT_WIDTH), torch.inf)}, "text_embeds must be finite"),
        ({"text_embeds": None}, "text_embeds must be a tensor, got NoneType"),
        ({"text_mask": None}, "text_mask must be a tensor, got NoneType"),
        ({"pooled_embeds": [1.0]}, "pooled_embeds must be a tensor, got list"),
        ({"image_embeds": None}, "image_embeds must be a tensor, got NoneType"),
        ({"start_latent": None}, "start_latent must be a tensor, got NoneType"),
        (NEGATIVE, "negative_text_embeds, negative_text_mask and negative_pooled_embeds must be None at cfg_scale = 1"),
    ],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named_before_any_section(
    engine: Engine, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        engine.sample(conditioning(**changes), SamplingConfig(num_sections=1))


def test_what_padding_tokens_hold_does_not_matter(engine: Engine) -> None:
    embeds = torch.zeros(1, 3, TEXT_WIDTH)
    sampling = SamplingConfig(num_sections=1, num_steps=1)
    expected = engine.sample_video(conditioning(text_embeds=embeds), sampling)
    embeds = embeds.clone()
    embeds[:, 2] = torch.nan
    assert torch.equal(engine.sample_video(conditioning(text_embeds=embeds), sampling), expected)


@pytest.mark.parametrize("absent", list(NEGATIVE))
def test_true_guidance_needs_all_three_negative_tensors(engine: Engine, absent: str) -> None:
    incomplete = conditioning(**{**NEGATIVE, absent: None})
    with pytest.raises(InputError, match=r"must be given at cfg_scale = 2\.0"):
        engine.sample(incomplete, SamplingConfig(num_sections=1, cfg_scale=2.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("order", ["inverted", "forward"])
def test_conditioning_may_lie_on_the_gpu(tmp_path: Path, order: str) -> None:
    saved_model(tmp_path)
    engine = Engine.load(tmp_path, config=EngineConfig(device="cuda"))
    sampling = SamplingConfig(num_sections=2, num_steps=2, order=order)
    on_cpu = conditioning()
    on_gpu = Conditioning(
        **{f.name: x.cuda() for f in dataclasses.fields(on_cpu) if (x := getattr(on_cpu, f.name)) is not None}
    )
    assert torch.equal(engine.sample_video(on_gpu, sampling), engine.sample_video(on_cpu, sampling))
