"""The frozen encoders: prompts through LLaMA and CLIP, the start image through SigLIP."""

import contextlib
import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..checkpoints.tensor_files import open_tensor_file
from ..errors import CheckpointError
from ..families.family import EncoderKind
from ..files import cache_key, read_json
from ..model.conditioning import PromptEmbeds
from .components import Components
from .layerwise import load_llama_layerwise
from .pretrained import LOADING, check_configs, load_pretrained, quiet
from .tensor_cache import TensorCache

if TYPE_CHECKING:
    from PIL.Image import Image
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_logger = logging.getLogger(__name__)

# Pixels of an encoder's input; more than any of them takes.
_MAX_IMAGE_SIDE = 4096

T = TypeVar("T")
# Tensors by name, by the key under which the cache has them.
Encoded = dict[str, dict[str, Tensor]]


class Encoders:
    """Encodes prompts and images; each encoder is in memory only while it works.

    The arithmetic is fp32 on the CPU and fp16 on CUDA, as published, whatever ``dtype`` the embeddings have.
    """

    def __init__(
        self,
        components: Components,
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        cache_dir: Path,
        local_files_only: bool = False,
    ) -> None:
        """Prepare; nothing is loaded.

        Args:
            components: where the encoders lie, and the model's prompt template.
            device: where they run and where the embeddings end up.
            dtype: of the embeddings.
            cache_dir: folder of cached embeddings.
            local_files_only: never ask the Hub.
        """
        self._components = components
        self._family = components.family
        self._device = torch.device(device)
        self._dtype = dtype
        self._compute_dtype = torch.float32 if self._device.type == "cpu" else torch.float16
        self._cache = TensorCache(cache_dir / "embeddings")
        folder = cache(lambda name: components.ref(name).fetch(local_files_only=local_files_only))
        self._folder, self._hash = folder, cache(lambda name: hash_folder(folder(name)))

    def encode_prompt(self, prompt: str) -> PromptEmbeds:
        """Encode one prompt; an empty one is allowed."""
        return self.encode_prompts([prompt])[0]

    def encode_prompts(self, prompts: Sequence[str]) -> list[PromptEmbeds]:
        """Encode several prompts, loading each encoder once."""
        keys = [self._prompt_key(prompt) for prompt in prompts]
        found = self._cached(dict(zip(keys, prompts, strict=True)), self._compute_prompts)
        return [self._to_prompt_embeds(found[key]) for key in keys]

    def encode_image(self, image: "Image") -> Tensor:
        """SigLIP's last hidden state [1, I, V] of an RGB image, which is squashed to the encoder's square."""
        return self.encode_images([image])[0]

    def encode_images(self, images: "Sequence[Image]") -> list[Tensor]:
        """Encode several images, loading the encoder once."""
        keys = [self._image_key(image) for image in images]
        found = self._cached(dict(zip(keys, images, strict=True)), self._compute_images)
        return [found[key]["image_embeds"].to(self._device, self._dtype) for key in keys]

    def _cached(self, inputs: dict[str, T], compute: Callable[[dict[str, T]], Encoded]) -> Encoded:
        """What ``inputs`` are encoded as, by key; ``compute`` is asked for those that are not in the cache."""
        found = {key: tensors for key in inputs if (tensors := self._cache.read(key)) is not None}
        absent = {key: value for key, value in inputs.items() if key not in found}
        computed = compute(absent) if absent else {}
        for key, tensors in computed.items():
            self._cache.write(key, tensors)
        return found | computed

    def _image_key(self, image: "Image") -> str:
        pixels = np.asarray(image)
        return cache_key(
            kind="image",
            pixels=hashlib.sha256(pixels.tobytes()).hexdigest(),
            shape=pixels.shape,
            sources=[self._hash("image_encoder"), self._hash("feature_extractor")],
            dtype=str(self._compute_dtype),
        )

    def _prompt_key(self, prompt: str) -> str:
        return cache_key(
            kind="prompt, with what is dropped of it",
            prompt=prompt,
            # Naming the published template's source spares a cached prompt the import of diffusers.
            template=self._components.profile.prompt_template or f"diffusers {version('diffusers')}",
            crop_start=self._components.profile.crop_start,
            sources=[
                self._hash(name) for name in ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
            ],
            dtype=str(self._compute_dtype),
        )

    def _to_prompt_embeds(self, tensors: dict[str, Tensor]) -> PromptEmbeds:
        longest = (
            ("text_encoder", self._family.max_prompt_tokens),
            ("text_encoder_2", int(tensors["pooled_length"])),
        )
        cuts = tuple(
            f"the prompt is longer than the {most} tokens that {name} reads: the last {num_dropped} are dropped"
            for (name, most), num_dropped in zip(longest, tensors["num_dropped"].tolist(), strict=True)
            if num_dropped
        )
        for cut in cuts:
            _logger.warning("%s", cut)
        text_embeds = tensors["text_embeds"].to(self._device, self._dtype)
        return PromptEmbeds(
            text_embeds=text_embeds,
            text_mask=torch.ones(text_embeds.shape[:2], dtype=torch.bool, device=self._device),
            pooled_embeds=tensors["pooled_embeds"].to(self._device, self._dtype),
            cuts=cuts,
        )

    def _compute_prompts(self, prompts: dict[str, str]) -> Encoded:
        tokens = self._tokenize(prompts)
        with self._loaded("text_encoder") as llama:
            states = {
                key: llama(input_ids=ids[None]).last_hidden_state for key, (ids, _, _) in tokens.items()
            }
        text = {key: states[key][:, crop_start:] for key, (_, crop_start, _) in tokens.items()}
        pooled = self._compute_pooled(prompts)
        return {
            key: {
                "text_embeds": text[key],
                "pooled_embeds": pooled[key][0],
                "pooled_length": torch.tensor(pooled[key][2]),
                "num_dropped": torch.tensor([tokens[key][2], pooled[key][1]]),
            }
            for key in prompts
        }

    def _tokenize(self, prompts: dict[str, str]) -> dict[str, tuple[Tensor, int, int]]:
        """Token ids [L], tokens of the template before the prompt, and tokens dropped, by key."""
        tokenizer = load_tokenizer(self._folder("tokenizer"))
        before, after = (self._components.profile.prompt_template or self._family.prompt_template()).split(
            "{}"
        )
        crop_start = self._components.profile.crop_start
        if crop_start is None:
            crop_start = count_template_tokens(tokenizer, before)
        tokens = {}
        for key, prompt in prompts.items():
            ids = tokenizer(before + prompt + after)["input_ids"]
            kept = tokenizer(
                before + prompt + after,
                truncation=True,
                max_length=self._family.max_prompt_tokens + crop_start,
            )["input_ids"]
            if len(kept) <= crop_start:
                raise CheckpointError(
                    f"crop_start must be below the {len(kept)} tokens of the template, got {crop_start}; set "
                    "crop_start to null in the model's isoframe.json to have it counted"
                )
            tokens[key] = (torch.tensor(kept, device=self._device), crop_start, len(ids) - len(kept))
        return tokens

    def _compute_pooled(self, prompts: dict[str, str]) -> dict[str, tuple[Tensor, int, int]]:
        """CLIP's output, tokens that are dropped, and tokens that it takes, its own two included, by key."""
        tokenizer = load_tokenizer(self._folder("tokenizer_2"))
        with self._loaded("text_encoder_2") as clip:
            length = clip.config.max_position_embeddings
            found = {}
            for key, prompt in prompts.items():
                ids = tokenizer(prompt, padding="max_length", max_length=length, truncation=True)["input_ids"]
                num_dropped = max(len(tokenizer(prompt)["input_ids"]) - length, 0)
                output = clip(input_ids=torch.tensor([ids], device=self._device)).pooler_output
                found[key] = output, num_dropped, length
            return found

    def _compute_images(self, images: "dict[str, Image]") -> Encoded:
        pixels = {
            key: prepare_image(image, self._folder("feature_extractor")) for key, image in images.items()
        }
        dtype = self._compute_dtype
        with self._loaded("image_encoder") as siglip:
            return {
                # One after the other: the plan counts the activations of one.
                key: {"image_embeds": siglip(pixel_values=values.to(self._device, dtype)).last_hidden_state}
                for key, values in pixels.items()
            }

    @contextlib.contextmanager
    def _loaded(self, name: str) -> Iterator[Any]:
        """One encoder in memory; its tensors are freed on the way out."""
        with LOADING:
            model: Any = load_encoder(
                self._family.encoders[name], self._folder(name), self._compute_dtype, self._device
            )
        try:
            with torch.no_grad():
                yield model
        finally:
            # References to the model may outlive this block; its weights must not.
            model.to("meta")
            if self._device.type == "cuda":
                torch.cuda.empty_cache()


def load_encoder(
    kind: EncoderKind, folder: Path, dtype: torch.dtype, device: torch.device
) -> "PreTrainedModel":
    """Load one encoder without the parts whose output is not used.

    Args:
        kind: what it is; the layers of one with unused layers are in memory only while they compute.
        folder: local folder with config and weights.
        dtype: of the parameters.
        device: where it computes.
    """
    import transformers

    model_type = read_json(folder / "config.json").get("model_type")
    if model_type not in kind.model_types:
        raise CheckpointError(
            f"{folder}: model_type must be {' or '.join(kind.model_types)}, got {model_type!r}"
        )
    model_class: Any = getattr(transformers, kind.model_class)
    check_configs(folder)
    config = model_class.config_class.from_pretrained(folder, trust_remote_code=False)
    config.update(kind.changes)
    if kind.num_unused_layers is None:
        model: PreTrainedModel = load_pretrained(model_class, folder, device, dtype=dtype, config=config)
        return model
    if config.num_hidden_layers <= kind.num_unused_layers:
        raise CheckpointError(
            f"{folder}: num_hidden_layers must be more than {kind.num_unused_layers}, got {config.num_hidden_layers}"
        )
    config.num_hidden_layers -= kind.num_unused_layers
    return load_llama_layerwise(config, folder, dtype, device)


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer in ``folder``, exactly as its ``tokenizer.json`` describes it where there is one.

    Raises:
        CheckpointError: it has neither that file nor a vocabulary with merges, they are damaged, or it brings code.
    """
    import transformers

    check_configs(folder)
    is_described = (folder / "tokenizer.json").is_file()
    if not is_described and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise CheckpointError(f"{folder} has no tokenizer.json; copy it from the tokenizer's repository")
    with quiet("transformers"):
        # The class that tokenizer_config.json names must not matter: LlamaTokenizer of transformers 5 splits text as
        # SentencePiece does even where tokenizer.json asks for the byte-level splitting of Llama 3.
        kind = transformers.PreTrainedTokenizerFast if is_described else transformers.AutoTokenizer
        try:
            tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        # The tokenizers library raises nothing narrower for a damaged file.
        except Exception as error:
            raise CheckpointError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def count_template_tokens(tokenizer: "PreTrainedTokenizerBase", before: str) -> int:
    """Tokens ahead of the prompt: the template's text ``before`` it, and what the tokenizer puts in front."""
    text = tokenizer(before, add_special_tokens=False)["input_ids"]
    whole = tokenizer(before)["input_ids"]
    # The tokenizer may also close the text, so the length of the whole says nothing.
    start = next(i for i in range(len(whole) + 1) if whole[i : i + len(text)] == text)
    return start + len(text)


def prepare_image(image: "Image", folder: Path) -> Tensor:
    """Pixels [1, 3, H, W] as ``preprocessor_config.json`` in ``folder`` asks: squashed, scaled, normalized."""
    from PIL.Image import Resampling

    path = folder / "preprocessor_config.json"
    config = read_json(path)
    try:
        size = (config["size"]["width"], config["size"]["height"])
        if not all(type(side) is int and 0 < side <= _MAX_IMAGE_SIDE for side in size):
            raise ValueError(f"size {size}")
        mean, std = np.float32(config["image_mean"]), np.float32(config["image_std"])
        resample, factor = Resampling(config["resample"]), np.float32(config["rescale_factor"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{path} lacks or garbles {error}; copy it from the encoder's repository"
        ) from error
    resized = np.asarray(image.convert("RGB").resize(size, resample), dtype=np.float32)
    normalized = (resized * factor - mean) / std
    return torch.from_numpy(normalized).permute(2, 0, 1)[None].contiguous()


def hash_folder(folder: Path) -> str:
    """SHA-256 of a component: names, sizes and fingerprints of its weights, and the content of everything else."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        if path.suffix == ".safetensors":
            digest.update(open_tensor_file(path).fingerprint())
            continue
        with path.open("rb") as file:
            # It reads the file in parts and adds each to the digest that it is given.
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()
