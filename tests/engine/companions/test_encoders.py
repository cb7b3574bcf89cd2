"""Encoders against transformers' own classes and diffusers' pipeline, and the cache of their results."""

import hashlib
import json
import re
import shutil
import stat
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from isoframe.engine.companions import encoders as encoders_module
from isoframe.engine.companions.components import Components, find_components
from isoframe.engine.companions.encoders import (
    Encoders,
    count_template_tokens,
    load_encoder,
    load_tokenizer,
    prepare_image,
)
from isoframe.engine.errors import CheckpointError
from isoframe.engine.families.family import EncoderKind
from isoframe.engine.families.framepack.family import FramePack

CPU = torch.device("cpu")
WORDS = [
    "<unk>",
    "<bos>",
    "<eos>",
    "describe",
    "the",
    "video",
    ":",
    "a",
    "red",
    "circle",
    "moves",
    "right",
    ".",
]
TEMPLATE = "describe the video : {} ."


def make_tokenizer(folder: Path, *, has_bos: bool = True, has_eos: bool = False) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single = f"{'<bos>:0 ' * has_bos}$A:0{' <eos>:0' * has_eos}"
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)


def make_llama(folder: Path, *, is_causal_lm: bool = False, **save: Any) -> torch.nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    model = (LlamaForCausalLM if is_causal_lm else LlamaModel)(config).eval()
    model.save_pretrained(folder, **save)
    return model.model if is_causal_lm else model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The companions of a tiny pipeline, and the models they were saved from."""
    from transformers import CLIPTextConfig, CLIPTextModel, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tokenizer(folder / "tokenizer")
    make_tokenizer(folder / "tokenizer_2", has_eos=True)
    shape = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    clip_config = CLIPTextConfig(
        vocab_size=len(WORDS),
        max_position_embeddings=9,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=2,
        **shape,
    )
    siglip_config = SiglipVisionConfig(image_size=32, patch_size=8, **shape)
    models = {
        "text_encoder": make_llama(folder / "text_encoder"),
        "text_encoder_2": CLIPTextModel(clip_config).eval(),
        "image_encoder": SiglipVisionModel(siglip_config).eval(),
    }
    models["text_encoder_2"].save_pretrained(folder / "text_encoder_2")
    models["image_encoder"].save_pretrained(folder / "image_encoder")
    (folder / "feature_extractor").mkdir()
    (folder / "feature_extractor" / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "do_normalize": True,
                "do_rescale": True,
                "do_resize": True,
                "image_mean": [0.5, 0.4, 0.3],
                "image_processor_type": "SiglipImageProcessor",
                "image_std": [0.5, 0.6, 0.7],
                "resample": 3,
                "rescale_factor": 1 / 255,
                "size": {"height": 32, "width": 32},
            }
        )
    )
    (folder / "transformer").mkdir()
    (folder / "vae").mkdir()
    return folder, models


@pytest.fixture
def folder(saved: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """A private copy of the companions, to change."""
    return Path(shutil.copytree(saved[0], tmp_path / "tiny"))


@pytest.fixture
def models(saved: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    return saved[1]


def find(folder: Path, **profile: object) -> Components:
    (folder / "isoframe.json").write_text(json.dumps({"prompt_template": TEMPLATE, **profile}))
    return find_components(folder)


def make_encoders(
    folder: Path, cache_dir: Path, dtype: torch.dtype = torch.float32, **profile: object
) -> Encoders:
    return Encoders(
        find(folder, **profile), device="cpu", dtype=dtype, cache_dir=cache_dir, local_files_only=True
    )


def diffusers_prompt(
    folder: Path, llama: torch.nn.Module, prompt: str, crop_start: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings and mask of diffusers' FramePack pipeline, padding included."""
    from diffusers import HunyuanVideoFramepackPipeline

    stand_in = SimpleNamespace(
        tokenizer=load_tokenizer(folder / "tokenizer"),
        text_encoder=llama,
        _execution_device=torch.device("cpu"),
    )
    embeds, mask = HunyuanVideoFramepackPipeline._get_llama_prompt_embeds(
        stand_in, prompt, {"template": TEMPLATE, "crop_start": crop_start}, dtype=torch.float32
    )
    return embeds, mask


def test_published_template_is_the_one_of_the_published_program() -> None:
    digest = hashlib.sha256(FramePack.prompt_template().encode()).hexdigest()
    assert digest == "a52f68dde3637b127592fffe9e2483a5d0563987a49db6ddb9b06146f2ba7cb5"


def test_llama_without_its_last_two_layers_gives_hidden_state_minus_three(
    folder: Path, models: dict[str, Any]
) -> None:
    ids = torch.randint(len(WORDS), (1, 11))
    whole = models["text_encoder"](input_ids=ids, output_hidden_states=True).hidden_states
    shortened = load_encoder(FramePack.encoders["text_encoder"], folder / "text_encoder", torch.float32, CPU)
    assert len(shortened.layers) == 3
    assert torch.equal(shortened(input_ids=ids).last_hidden_state, whole[-3])


def test_weights_of_one_llama_layer_are_in_memory_at_a_time(folder: Path) -> None:
    llama = load_encoder(FramePack.encoders["text_encoder"], folder / "text_encoder", torch.float32, CPU)
    loaded = []
    for layer in llama.layers:
        layer.register_forward_pre_hook(
            lambda *_: loaded.append([not next(other.parameters()).is_meta for other in llama.layers])
        )
    llama(input_ids=torch.randint(len(WORDS), (1, 5)))
    assert loaded == [[True, False, False], [False, True, False], [False, False, True]]
    assert all(parameter.is_meta for parameter in llama.parameters())


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "40KB"}], ids=["one-file", "sharded"])
def test_llama_stored_for_causal_lm_is_the_same_model(tmp_path: Path, shards: dict[str, str]) -> None:
    whole = make_llama(tmp_path / "lm", is_causal_lm=True, **shards)
    ids = torch.randint(len(WORDS), (1, 5))
    shortened = load_encoder(FramePack.encoders["text_encoder"], tmp_path / "lm", torch.float32, CPU)
    expected = whole(input_ids=ids, output_hidden_states=True).hidden_states[-3]
    assert torch.equal(shortened(input_ids=ids).last_hidden_state, expected)


@pytest.mark.parametrize("prompt", ["a red circle moves right", "", "circle"])
def test_prompt_equals_diffusers_pipeline(
    folder: Path, models: dict[str, Any], tmp_path: Path, prompt: str
) -> None:
    encoded = make_encoders(folder, tmp_path / "cache").encode_prompt(prompt)
    expected, mask = diffusers_prompt(folder, models["text_encoder"], prompt, crop_start=5)
    valid = int(mask.sum())
    assert encoded.text_embeds.shape == (1, len(prompt.split()) + 1, 32)
    assert torch.allclose(encoded.text_embeds, expected[:, :valid], atol=1e-5)
    assert encoded.text_mask.dtype == torch.bool
    assert encoded.text_mask.shape == (1, valid)
    assert encoded.text_mask.all()


def test_pooled_prompt_equals_transformers_clip(folder: Path, models: dict[str, Any], tmp_path: Path) -> None:
    encoded = make_encoders(folder, tmp_path / "cache").encode_prompt("a red circle")
    ids = torch.tensor([[1, 7, 8, 9, 2, 2, 2, 2, 2]])
    expected = models["text_encoder_2"](input_ids=ids).pooler_output
    assert torch.allclose(encoded.pooled_embeds, expected, atol=1e-6)


def test_long_prompt_is_cut_as_in_diffusers_and_the_dropped_tokens_are_counted(
    folder: Path, models: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = "red circle " * 140
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        encoded = make_encoders(folder, tmp_path / "cache").encode_prompt(prompt)
        assert [record.message for record in caplog.records] == [
            "the prompt is longer than the 256 tokens that text_encoder reads: the last 25 are dropped",
            "the prompt is longer than the 9 tokens that text_encoder_2 reads: the last 273 are dropped",
        ]
        assert encoded.cuts == tuple(record.message for record in caplog.records)
    expected, _ = diffusers_prompt(folder, models["text_encoder"], prompt, crop_start=5)
    assert encoded.text_embeds.shape[1] == 256
    assert torch.allclose(encoded.text_embeds, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("has_bos", "has_eos", "count"), [(True, False, 5), (True, True, 5), (False, True, 4)]
)
def test_crop_start_is_counted_with_the_tokenizers_own_ends(
    tmp_path: Path, has_bos: bool, has_eos: bool, count: int
) -> None:
    make_tokenizer(tmp_path, has_bos=has_bos, has_eos=has_eos)
    tokenizer = load_tokenizer(tmp_path)
    assert count_template_tokens(tokenizer, TEMPLATE.split("{}")[0]) == count


def test_crop_start_of_the_profile_wins(folder: Path, tmp_path: Path) -> None:
    counted = make_encoders(folder, tmp_path / "cache").encode_prompt("red").text_embeds
    given = make_encoders(folder, tmp_path / "cache", crop_start=2).encode_prompt("red").text_embeds
    assert given.shape[1] == counted.shape[1] + 3
    assert torch.equal(given[:, 3:], counted)


def test_crop_start_beyond_the_prompt_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"crop_start must be below the 7 tokens .* got 95; set crop_start to null"
    ):
        make_encoders(folder, tmp_path / "cache", crop_start=95).encode_prompt("red")


def test_braces_in_a_prompt_are_text(folder: Path, tmp_path: Path) -> None:
    assert make_encoders(folder, tmp_path / "cache").encode_prompt("{} {0} {").text_embeds.shape[1] == 4


def test_image_equals_transformers_siglip(folder: Path, models: dict[str, Any], tmp_path: Path) -> None:
    from transformers import SiglipImageProcessorPil

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8))
    pixels = SiglipImageProcessorPil.from_pretrained(folder / "feature_extractor")(image, return_tensors="pt")
    assert torch.allclose(
        prepare_image(image, folder / "feature_extractor"), pixels["pixel_values"], atol=1e-6
    )
    expected = models["image_encoder"](**pixels).last_hidden_state
    encoded = make_encoders(folder, tmp_path / "cache").encode_image(image)
    assert encoded.shape == (1, 16, 24)
    assert torch.allclose(encoded, expected, atol=1e-5)


def test_garbled_preprocessor_config_is_refused(folder: Path) -> None:
    (folder / "feature_extractor" / "preprocessor_config.json").write_text('{"size": {"height": 4}}')
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json lacks or garbles 'width'"):
        prepare_image(Image.new("RGB", (4, 4)), folder / "feature_extractor")


def test_embeddings_come_in_the_asked_dtype(folder: Path, tmp_path: Path) -> None:
    whole = make_encoders(folder, tmp_path / "cache").encode_prompt("red")
    half = make_encoders(folder, tmp_path / "cache", torch.bfloat16).encode_prompt("red")
    assert torch.equal(half.text_embeds, whole.text_embeds.to(torch.bfloat16))
    assert torch.equal(half.pooled_embeds, whole.pooled_embeds.to(torch.bfloat16))


def test_byte_level_tokenizer_with_a_llama_class_name_keeps_its_splitting(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["user header\n\na red circle"], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|eot_id|>").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(config | {"tokenizer_class": "LlamaTokenizerFast"})
    )
    text = "header\n\na réd circle"
    assert load_tokenizer(tmp_path)(text)["input_ids"] == tokenizer.encode(text).ids


def test_tokenizer_of_vocabulary_and_merges_is_loaded(tmp_path: Path) -> None:
    vocabulary = ["a</w>", "r", "e", "d</w>", "ed</w>", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\ne d</w>\nr ed</w>\n")
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "pad_token": "<|endoftext|>", "model_max_length": 77})
    )
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer("a red", padding="max_length", max_length=6, truncation=True)["input_ids"]
    assert ids == [6, 0, 5, 7, 7, 7]


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_code_that_a_folder_brings_is_never_run(tmp_path: Path, name: str) -> None:
    marker = tmp_path / "was run"
    (tmp_path / "mine.py").write_text(f"open({str(marker)!r}, 'w').close()\nclass Mine:\n    pass\n")
    maps = {"AutoConfig": "mine.Mine", "AutoModel": "mine.Mine", "AutoTokenizer": ["mine.Mine", None]}
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / name).write_text(json.dumps({"model_type": "llama", "auto_map": maps}))
    with pytest.raises(CheckpointError, match=rf"{name} names code of its own \(auto_map\)"):
        load_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{name} names code of its own \(auto_map\)"):
        load_encoder(FramePack.encoders["text_encoder"], tmp_path, torch.float32, CPU)
    assert not marker.exists()


@pytest.mark.parametrize("content", [b"{}", b"[", b"\xff", b'{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        load_tokenizer(tmp_path)


def test_a_tokenizer_needs_its_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_a_number_of_layers_beyond_any_model_is_refused_at_once(tmp_path: Path) -> None:
    config = {"model_type": "llama", "num_hidden_layers": 10**6}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="num_hidden_layers must be at most 1000, got 1000000"):
        load_encoder(FramePack.encoders["text_encoder"], tmp_path, torch.float32, CPU)


# The cache.


def count_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Classes of the encoders loaded from now on."""
    loads: list[str] = []
    load: Callable[..., Any] = encoders_module.load_encoder

    def count(kind: EncoderKind, *args: Any) -> Any:
        loads.append(kind.model_class)
        return load(kind, *args)

    monkeypatch.setattr(encoders_module, "load_encoder", count)
    return loads


def test_second_encoding_loads_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = count_loads(monkeypatch)
    image = Image.new("RGB", (40, 30), (10, 200, 30))
    first = make_encoders(folder, tmp_path / "cache")
    prompt, embeds = first.encode_prompt("red"), first.encode_image(image)
    assert loads == ["LlamaModel", "CLIPTextModel", "SiglipVisionModel"]
    second = make_encoders(folder, tmp_path / "cache")
    assert torch.equal(second.encode_prompt("red").text_embeds, prompt.text_embeds)
    assert torch.equal(second.encode_prompt("red").pooled_embeds, prompt.pooled_embeds)
    assert torch.equal(second.encode_image(image), embeds)
    assert len(loads) == 3


def test_several_prompts_load_each_encoder_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = count_loads(monkeypatch)
    encoders = make_encoders(folder, tmp_path / "cache")
    both = encoders.encode_prompts(["red", "a circle"])
    assert loads == ["LlamaModel", "CLIPTextModel"]
    alone = make_encoders(folder, tmp_path / "other").encode_prompt("a circle")
    assert torch.equal(both[1].text_embeds, alone.text_embeds)
    assert torch.equal(both[1].pooled_embeds, alone.pooled_embeds)


def test_several_images_load_the_encoder_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = count_loads(monkeypatch)
    images = [Image.new("RGB", (40, 30), color) for color in ((10, 200, 30), (200, 10, 30))]
    both = make_encoders(folder, tmp_path / "cache").encode_images([*images, images[0]])
    assert loads == ["SiglipVisionModel"]
    alone = [make_encoders(folder, tmp_path / "other").encode_image(image) for image in images]
    assert all(torch.equal(one, other) for one, other in zip(both, (*alone, alone[0]), strict=True))


@pytest.mark.parametrize("change", ["prompt", "template", "crop_start", "weights", "tokenizer"])
def test_whatever_decides_an_embedding_is_in_its_key(folder: Path, tmp_path: Path, change: str) -> None:
    make_encoders(folder, tmp_path / "cache").encode_prompt("red")
    profile: dict[str, object] = {}
    if change == "template":
        profile = {"prompt_template": "the video : {} ."}
    elif change == "crop_start":
        profile = {"crop_start": 1}
    elif change == "weights":
        path = folder / "text_encoder" / "model.safetensors"
        save_file({name: tensor.half() for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    elif change == "tokenizer":
        make_tokenizer(folder / "tokenizer", has_bos=False)
    make_encoders(folder, tmp_path / "cache", **profile).encode_prompt("a" if change == "prompt" else "red")
    assert len(list((tmp_path / "cache" / "embeddings").iterdir())) == 2


def test_images_of_equal_bytes_and_other_shapes_differ(folder: Path, tmp_path: Path) -> None:
    encoders = make_encoders(folder, tmp_path / "cache")
    pixels = np.random.default_rng(1).integers(0, 256, (8, 32, 3), dtype=np.uint8)
    wide = encoders.encode_image(Image.fromarray(pixels))
    tall = encoders.encode_image(Image.fromarray(pixels.reshape(32, 8, 3)))
    assert not torch.allclose(wide, tall)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "foreign"])
def test_damaged_entry_is_computed_again_with_a_warning(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    expected = make_encoders(folder, tmp_path / "cache").encode_prompt("red").text_embeds
    (entry,) = (tmp_path / "cache" / "embeddings").iterdir()
    content = bytearray(entry.read_bytes())
    if damage == "flipped":
        content[-5] ^= 0x40
    damaged = {"truncated": content[:-20], "flipped": content, "empty": b""}
    if damage == "foreign":
        save_file({"x": torch.zeros(1)}, entry)
    else:
        entry.write_bytes(damaged[damage])
    again = make_encoders(folder, tmp_path / "cache").encode_prompt("red").text_embeds
    assert torch.equal(again, expected)
    assert "is damaged" in caplog.text
    caplog.clear()
    make_encoders(folder, tmp_path / "cache").encode_prompt("red")
    assert not caplog.records


def test_unwritable_cache_costs_one_warning_and_no_job(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    encoders = make_encoders(folder, tmp_path / "cache")
    assert encoders.encode_prompt("red").text_embeds.shape == (1, 2, 32)
    assert encoders.encode_prompt("a").text_embeds.shape == (1, 2, 32)
    assert [record.message.split(":")[0] for record in caplog.records] == ["embeddings are not cached"]


def test_failed_write_leaves_nothing_behind(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(_: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    make_encoders(folder, tmp_path / "cache").encode_prompt("red")
    assert "No space left on device" in caplog.text
    assert not list((tmp_path / "cache" / "embeddings").iterdir())


def test_entries_are_readable_safetensors_files(folder: Path, tmp_path: Path) -> None:
    encoded = make_encoders(folder, tmp_path / "cache").encode_prompt("red")
    (entry,) = (tmp_path / "cache" / "embeddings").iterdir()
    assert torch.equal(load_file(entry)["text_embeds"], encoded.text_embeds)
    assert entry.stat().st_mode & stat.S_IRUSR


# Loading.


def test_loading_is_quiet_and_leaves_transformers_settings_alone(
    folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging as transformers_logging

    before = (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled())
    encoders = make_encoders(folder, tmp_path / "cache")
    encoders.encode_prompt("red")
    encoders.encode_image(Image.new("RGB", (8, 8)))
    assert (transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()) == before
    output = capfd.readouterr()
    assert output.out + output.err == ""


def test_absent_tensors_are_named(folder: Path, tmp_path: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    del tensors["layers.1.mlp.up_proj.weight"]
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"not those of LlamaModel: 1 missing: layers\.1\.mlp\.up_proj\.weight"
    ):
        make_encoders(folder, tmp_path / "cache").encode_prompt("red")


def test_unused_layers_need_not_be_there(folder: Path, tmp_path: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    expected = make_encoders(folder, tmp_path / "a").encode_prompt("red").text_embeds
    tensors = load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(("layers.3", "layers.4"))}
    assert len(kept) < len(tensors)
    save_file(kept, path, {"format": "pt"})
    assert torch.equal(make_encoders(folder, tmp_path / "b").encode_prompt("red").text_embeds, expected)


def test_truncated_encoder_is_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        make_encoders(folder, tmp_path / "cache").encode_prompt("red")


def test_another_model_in_an_encoders_place_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "text_encoder")
    shutil.copytree(folder / "text_encoder_2", folder / "text_encoder")
    with pytest.raises(CheckpointError, match="model_type must be llama, got 'clip_text_model'"):
        make_encoders(folder, tmp_path / "cache").encode_prompt("red")


def test_weights_of_an_encoder_are_freed_before_the_next_is_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storages: list[weakref.ref[Any]] = []
    load = encoders_module.load_encoder

    def watch(*args: Any) -> Any:
        assert not any(ref() for ref in storages)
        model = load(*args)
        storages.extend(weakref.ref(parameter.untyped_storage()) for parameter in model.parameters())
        return model

    monkeypatch.setattr(encoders_module, "load_encoder", watch)
    encoders = make_encoders(folder, tmp_path / "cache")
    encoders.encode_prompt("red")
    encoders.encode_image(Image.new("RGB", (8, 8)))
    assert len(storages) > 60
    assert not any(ref() for ref in storages)
