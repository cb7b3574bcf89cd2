"""FramePack as the engine asks for it: the answers to :class:`~isoframe.engine.families.family.Family`."""

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from ...model.precision import UnitSpec
from ..family import EncoderKind, Family, PlannedModel
from ..registry import PUBLISHED_NAME
from .model_sizes import DATA, MAX_PROMPT_TOKENS, UNUSED_LLAMA_LAYERS, ModelShapes, published_shapes
from .transformer_config import TRANSFORMER_CLASSES, TransformerConfig
from .unit_layout import unit_specs

if TYPE_CHECKING:
    from .transformer import PackedTransformer


class FramePack(Family):
    """HunyuanVideo's transformer with FramePack's packed history."""

    config: TransformerConfig
    config_class = TransformerConfig
    data = DATA
    vae_class = "AutoencoderKLHunyuanVideo"
    # LLaMA gives hidden state -3 of the whole model: its last two layers are not run. SigLIP has no use for its pooling.
    encoders: ClassVar[Mapping[str, EncoderKind]] = {
        "text_encoder": EncoderKind(("llama",), "LlamaModel", num_unused_layers=UNUSED_LLAMA_LAYERS),
        "text_encoder_2": EncoderKind(("clip_text_model", "clip"), "CLIPTextModel"),
        "image_encoder": EncoderKind(
            ("siglip_vision_model", "siglip"), "SiglipVisionModel", {"vision_use_head": False}
        ),
    }
    max_prompt_tokens = MAX_PROMPT_TOKENS

    @classmethod
    def recognises(cls, class_name: str | None, tensor_names: Collection[str]) -> bool:
        return class_name in TRANSFORMER_CLASSES or "x_embedder.proj.weight" in tensor_names

    @classmethod
    def read_config(
        cls, raw: Mapping[str, object], shapes: Mapping[str, tuple[int, ...]] | None = None, *, source: str
    ) -> TransformerConfig:
        if shapes is not None:
            return TransformerConfig.from_shapes(shapes, source=source)
        return TransformerConfig.from_dict(raw, source=source)

    @classmethod
    def published(cls, name: str) -> PlannedModel | None:
        orders = {PUBLISHED_NAME: "inverted", **cls.hub_models()}
        if name not in orders:
            return None
        buckets = tuple((height, width) for height, width in cls.profile()["buckets"])
        return PlannedModel(shapes=published_shapes(), buckets=buckets, order=orders[name])

    @classmethod
    def default_order(cls, name: str) -> str | None:
        return "forward" if re.search(r"(?<![A-Za-z0-9])F1(?![A-Za-z0-9])", name) else None

    @classmethod
    def prompt_template(cls) -> str:
        from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video_framepack

        template: str = pipeline_hunyuan_video_framepack.DEFAULT_PROMPT_TEMPLATE["template"]
        return template

    def sizes(self, name: str, companions: Mapping[str, Mapping[str, Any]]) -> ModelShapes:
        return ModelShapes.from_configs(name, self.config, companions)

    def unit_specs(self) -> tuple[UnitSpec, ...]:
        return unit_specs(self.config)

    def transformer_class(self) -> "type[PackedTransformer]":
        from .transformer import PackedTransformer

        return PackedTransformer


FAMILY = FramePack
