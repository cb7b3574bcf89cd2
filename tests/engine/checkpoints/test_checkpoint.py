"""Opening checkpoints: every layout gives the same tensors, every damage its own message."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest
import torch
from published_config import PUBLISHED
from safetensors.torch import load_file, save_file

from isoframe.engine.checkpoints.checkpoint import load_into
from isoframe.engine.checkpoints.destinations import DenseTensor
from isoframe.engine.checkpoints.hub import is_hub_id
from isoframe.engine.checkpoints.tensor_files import map_tensor, open_tensor_file
from isoframe.engine.errors import CheckpointError
from isoframe.engine.families.framepack.transformer_config import TRANSFORMER_CLASSES, TransformerConfig
from isoframe.engine.families.opening import open_transformer

SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 64,
    "num_layers": 1,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": 24,
    "pooled_projection_dim": 20,
    "image_proj_dim": 12,
    "rope_axes_dim": (16, 24, 24),
    "has_image_proj": True,
    "has_clean_x_embedder": True,
}
SINGLE = "diffusion_pytorch_model.safetensors"
INDEX = f"{SINGLE}.index.json"


def make_model(**changes: object) -> torch.nn.Module:
    from diffusers import HunyuanVideoFramepackTransformer3DModel

    return HunyuanVideoFramepackTransformer3DModel(**{**SIZES, **changes})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A folder with a tiny model saved by diffusers in shards, and its state dict."""
    torch.manual_seed(1)
    model = make_model()
    folder = tmp_path_factory.mktemp("models") / "Tiny_F1"
    model.save_pretrained(folder, max_shard_size="1MB")
    return folder, {name: tensor.detach() for name, tensor in model.state_dict().items()}


@pytest.fixture
def folder(saved: tuple[Path, dict[str, torch.Tensor]], tmp_path: Path) -> Path:
    """A private copy of the sharded folder, to damage."""
    return Path(shutil.copytree(saved[0], tmp_path / "Tiny_F1"))


@pytest.fixture
def state(saved: tuple[Path, dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return saved[1]


def wrapped(tensors: dict[str, torch.Tensor]) -> dict[str, DenseTensor]:
    return {name: DenseTensor(tensor) for name, tensor in tensors.items()}


def assert_loads(source: Path, state: dict[str, torch.Tensor], dtype: torch.dtype = torch.float32) -> None:
    opened = open_transformer(source)
    loaded = {name: torch.full_like(tensor, torch.nan, dtype=dtype) for name, tensor in state.items()}
    load_into(opened, wrapped(loaded))
    for name, tensor in state.items():
        assert torch.equal(loaded[name], tensor.to(dtype)), name


def edit_json(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def test_sharded_folder_loads_every_tensor(folder: Path, state: dict[str, torch.Tensor]) -> None:
    assert len(list(folder.glob("*.safetensors"))) > 2
    opened = open_transformer(folder)
    assert opened.name == "Tiny_F1"
    assert opened.config == TransformerConfig.from_dict(make_model().config, source="test")
    assert opened.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert_loads(folder, state)


def test_destinations_in_another_dtype_are_cast(folder: Path, state: dict[str, torch.Tensor]) -> None:
    assert_loads(folder, state, torch.bfloat16)


def test_destinations_may_be_views_of_a_fused_parameter(folder: Path, state: dict[str, torch.Tensor]) -> None:
    names = [f"single_transformer_blocks.0.attn.to_{part}.weight" for part in "qkv"]
    fused = torch.zeros(3 * 128, 128)
    others = {name: torch.empty_like(tensor) for name, tensor in state.items()}
    load_into(open_transformer(folder), wrapped(others | dict(zip(names, fused.chunk(3), strict=True))))
    assert torch.equal(fused, torch.cat([state[name] for name in names]))


def test_pipeline_folder_opens_its_transformer(folder: Path, state: dict[str, torch.Tensor]) -> None:
    pipeline = folder.parent / "pipeline_F1"
    folder.rename(pipeline.with_name("moved"))
    pipeline.mkdir()
    pipeline.with_name("moved").rename(pipeline / "transformer")
    assert open_transformer(pipeline).name == open_transformer(pipeline / "transformer").name == "pipeline_F1"
    assert_loads(pipeline, state)


def test_single_file_without_config_derives_it_from_the_shapes(
    tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    path = tmp_path / "tiny_bf16.safetensors"
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in state.items()}, path)
    opened = open_transformer(path)
    assert opened.name == "tiny_bf16"
    assert opened.config == TransformerConfig.from_dict(make_model().config, source="test")
    assert_loads(path, state)


def test_config_beside_a_single_file_wins(
    folder: Path, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    save_file(state, tmp_path / "tiny.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    edit_json(tmp_path / "config.json", lambda raw: raw.update(rope_theta=512.0))
    assert open_transformer(tmp_path / "tiny.safetensors").config.rope_theta == 512.0


def test_derived_config_without_optional_parts() -> None:
    model = make_model(has_image_proj=False, has_clean_x_embedder=False, guidance_embeds=False, num_layers=0)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    config = TransformerConfig.from_shapes(shapes, source="test")
    assert (config.has_image_proj, config.has_clean_x_embedder, config.guidance_embeds) == (
        False,
        False,
        False,
    )
    assert (config.num_layers, config.num_single_layers) == (0, 2)


def test_published_config_describes_the_published_tensors() -> None:
    config = TransformerConfig.from_dict(PUBLISHED, source="test")
    assert config.inner_dim == 3072
    given = {name: value for name, value in PUBLISHED.items() if not name.startswith("_")}
    with torch.device("meta"):
        model = make_model(**given)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert TransformerConfig.from_shapes(shapes, source="test") == config
    assert len(shapes) == 1274
    assert sum(parameter.numel() for parameter in model.parameters()) == 12_874_314_816


def test_unscaled_fp8_is_upcast_to_bf16(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    fp8 = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state.items() if tensor.ndim > 1}
    save_file(state | fp8, tmp_path / "tiny_fp8.safetensors")
    for name, tensor in open_transformer(tmp_path / "tiny_fp8.safetensors").tensors():
        expected = fp8[name].to(torch.bfloat16) if name in fp8 else state[name]
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("suffix", ["scale_weight", "weight_scale"])
def test_scaled_fp8_is_multiplied_by_its_scale(
    tmp_path: Path, state: dict[str, torch.Tensor], suffix: str, prefix: str
) -> None:
    name = "single_transformer_blocks.1.proj_mlp"
    scale = state[f"{name}.weight"].abs().max() / 448
    fp8 = (state[f"{name}.weight"] / scale).to(torch.float8_e4m3fn)
    stored = state | {
        f"{name}.weight": fp8,
        f"{name}.{suffix}": scale,
        f"{name}.scale_input": torch.ones(()),
        "scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn),
    }
    save_file(
        {prefix + key: tensor.contiguous() for key, tensor in stored.items()}, tmp_path / "a.safetensors"
    )
    loaded = dict(open_transformer(tmp_path / "a.safetensors").tensors())
    assert loaded.keys() == state.keys()
    assert torch.equal(loaded[f"{name}.weight"], (fp8.float() * scale).to(torch.bfloat16))


def test_scaled_fp8_without_a_scale_is_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    name = "proj_out.weight"
    stored = state | {name: state[name].to(torch.float8_e4m3fn), "scaled_fp8": torch.empty(0)}
    save_file(stored, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"scaled fp8, but 1 weights lack a scale: proj_out\.weight"):
        open_transformer(tmp_path / "a.safetensors")


def test_fp8_scale_per_channel_is_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    fp8 = state["proj_out.weight"].to(torch.float8_e4m3fn)
    save_file(
        state | {"proj_out.weight": fp8, "proj_out.scale_weight": torch.ones(64, 1)},
        tmp_path / "a.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"one number per tensor, got proj_out\.weight \[64, 1\]"):
        open_transformer(tmp_path / "a.safetensors")


def test_integer_weights_are_refused(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state | {"proj_out.weight": torch.ones(64, 128, dtype=torch.int8)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensors that are not F64.*proj_out\.weight I8.*bf16"):
        open_transformer(tmp_path / "a.safetensors")


def test_source_hash_follows_content_not_location(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "elsewhere")
    first = open_transformer(folder).source_hash
    assert open_transformer(copy).source_hash == first
    shard = sorted(copy.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    # Same names, sizes and header, as the I2V and F1 checkpoints have: other weights are another model.
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, shard)
    assert open_transformer(copy).source_hash != first


def test_large_files_are_told_apart_by_samples(tmp_path: Path) -> None:
    tensors = {f"t{i}": torch.zeros(2**20) for i in range(6)}
    fingerprints = set()
    for i in (None, 0, 3, 5):
        changed = {} if i is None else {f"t{i}": torch.ones(2**20)}
        save_file(tensors | changed, tmp_path / "large.safetensors")
        fingerprints.add(open_tensor_file(tmp_path / "large.safetensors").fingerprint())
    assert len(fingerprints) == 4


def test_reading_keeps_one_tensor_mapped(folder: Path) -> None:
    shards = {str(path) for path in folder.glob("*.safetensors")}
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("needs /proc/self/maps")
    for _, tensor in open_transformer(folder).tensors():
        num_mapped = sum(line.split()[-1] in shards for line in maps.read_text().splitlines())
        assert num_mapped == 1
        del tensor


def test_unaligned_tensors_are_read(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    header = json.dumps(
        {
            "a": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [0, 3]},
            "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
        }
    ).encode()
    data = bytes([56, 57, 58]) + torch.tensor([1.5, -2.0]).numpy().tobytes()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    entries = open_tensor_file(tmp_path / "a.safetensors").entries
    assert map_tensor(entries["a"]).tolist() == [1.0, 1.125, 1.25]
    assert map_tensor(entries["b"]).tolist() == [1.5, -2.0]


def test_wrong_tensors_are_counted_and_named_before_any_copy(
    folder: Path, state: dict[str, torch.Tensor]
) -> None:
    destinations = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    destinations["proj_out.bias"] = torch.zeros(3)
    destinations |= {f"surplus.{i:02}": torch.zeros(1) for i in range(12)}
    del destinations["x_embedder.proj.bias"]
    with pytest.raises(CheckpointError) as caught:
        load_into(open_transformer(folder), wrapped(destinations))
    message = str(caught.value)
    assert "12 missing: surplus.00, surplus.01" in message
    assert "surplus.09, ..." in message
    assert "surplus.10" not in message
    assert "1 extra: x_embedder.proj.bias" in message
    assert "1 misshapen: proj_out.bias [64] instead of [3]" in message
    assert not any(tensor.any() for tensor in destinations.values())


def test_missing_shard_is_named(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"lacks 1 of the \d+ shards .*{shard.name}.*again"):
        open_transformer(folder)


def test_truncated_shard_is_refused(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    content = shard.read_bytes()
    shard.write_bytes(content[:-100])
    expected = (
        rf"{shard.name} is truncated: it has {len(content) - 100} bytes and needs at least {len(content)}"
    )
    with pytest.raises(CheckpointError, match=expected):
        open_transformer(folder)


@pytest.mark.parametrize("num_bytes", [0, 5, 40])
def test_file_cut_inside_its_header_is_truncated(folder: Path, num_bytes: int) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:num_bytes])
    with pytest.raises(CheckpointError, match=rf"{shard.name} is truncated: it has {num_bytes} bytes"):
        open_transformer(folder)


def test_file_with_surplus_bytes_is_refused(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes() + b"\0" * 16)
    with pytest.raises(CheckpointError, match="but its header describes"):
        open_transformer(folder)


@pytest.mark.parametrize(
    "header",
    [
        b"{not json",
        b"[]",
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32"}}',
    ],
    ids=["not-json", "not-an-object", "shape-and-offsets-disagree", "no-offsets"],
)
def test_corrupt_header_is_refused(tmp_path: Path, header: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(CheckpointError, match=r"a\.safetensors has a corrupt header"):
        open_transformer(path)


def test_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"\xff" * 64)
    with pytest.raises(CheckpointError, match="corrupt header or is not a safetensors file"):
        open_transformer(path)


def test_git_lfs_pointer_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        open_transformer(path)


def test_index_that_names_absent_tensors_is_refused(folder: Path) -> None:
    def add(raw: dict[str, object]) -> None:
        weight_map = raw["weight_map"]
        assert isinstance(weight_map, dict)
        weight_map["ghost.weight"] = weight_map["proj_out.bias"]

    edit_json(folder / INDEX, add)
    with pytest.raises(
        CheckpointError, match=r"names 1 tensors that are absent from their shard: ghost\.weight \("
    ):
        open_transformer(folder)


def test_index_that_leaves_its_folder_is_refused(folder: Path) -> None:
    edit_json(folder / INDEX, lambda raw: raw["weight_map"].update({"proj_out.bias": "../x.safetensors"}))
    with pytest.raises(CheckpointError, match=r"files of its own folder, got \.\./x\.safetensors"):
        open_transformer(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": {}}'])
def test_unusable_index_is_refused(folder: Path, content: str) -> None:
    (folder / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match=INDEX):
        open_transformer(folder)


def test_config_with_unknown_and_missing_keys_is_refused(folder: Path) -> None:
    def change(raw: dict[str, object]) -> None:
        raw["num_heads"] = raw.pop("num_attention_heads")

    edit_json(folder / "config.json", change)
    with pytest.raises(
        CheckpointError, match=r"config\.json .* unknown num_heads; missing num_attention_heads"
    ):
        open_transformer(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_layers", "20"),
        ("num_attention_heads", 0),
        ("mlp_ratio", None),
        ("rope_axes_dim", [16, 24]),
        ("rope_axes_dim", [16, 24, 32]),
        ("qk_norm", "layer_norm"),
        ("guidance_embeds", "yes"),
        ("image_condition_type", "token_replace"),
    ],
)
def test_config_value_out_of_range_is_refused(folder: Path, key: str, value: object) -> None:
    edit_json(folder / "config.json", lambda raw: raw.update({key: value}))
    with pytest.raises(CheckpointError, match=key):
        open_transformer(folder)


def test_both_published_class_names_are_accepted_and_others_refused(folder: Path) -> None:
    for class_name in TRANSFORMER_CLASSES:
        edit_json(folder / "config.json", lambda raw, name=class_name: raw.update(_class_name=name))
        open_transformer(folder)
    edit_json(folder / "config.json", lambda raw: raw.update(_class_name="WanTransformer3DModel"))
    names = "HunyuanVideoTransformer3DModelPacked or HunyuanVideoFramepackTransformer3DModel"
    with pytest.raises(CheckpointError, match=f"{names}, got 'WanTransformer3DModel'"):
        open_transformer(folder)


def test_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_transformer(folder)


def test_shards_without_index_are_refused(folder: Path) -> None:
    (folder / INDEX).unlink()
    with pytest.raises(CheckpointError, match=rf"\.safetensors files and no {INDEX}"):
        open_transformer(folder)


@pytest.mark.parametrize(
    ("filename", "match"),
    [("pytorch_model.bin", "only pickled weights"), ("readme.md", r"has no \.safetensors file")],
)
def test_folder_without_safetensors_is_refused(tmp_path: Path, filename: str, match: str) -> None:
    (tmp_path / filename).write_bytes(b"")
    with pytest.raises(CheckpointError, match=match):
        open_transformer(tmp_path)


def test_file_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"model\.ckpt must be a \.safetensors file"):
        open_transformer(tmp_path / "model.ckpt")


def test_file_of_another_model_is_refused(tmp_path: Path) -> None:
    save_file({"double_blocks.0.img_mod.linear.weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"not a FramePack transformer: .*x_embedder.*double_blocks"):
        open_transformer(tmp_path / "a.safetensors")


def test_unknown_source_names_both_readings_and_the_nearest_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    with pytest.raises(CheckpointError, match=r"'Tiny_F2'.*path.*Hub id.*did you mean 'Tiny_F1'"):
        open_transformer("Tiny_F2")


# The Hub, without a network: a cache folder as huggingface_hub writes it.


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def put_in_cache(cache: Path, repository: str, folder: Path) -> Path:
    """Copy ``folder`` into the cache as the main revision of ``repository``."""
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    return Path(shutil.copytree(folder, root / "snapshots" / ("0" * 40)))


def test_cached_hub_repository_opens_offline(
    folder: Path, hub_cache: Path, state: dict[str, torch.Tensor]
) -> None:
    snapshot = put_in_cache(hub_cache, "someone/FramePack_F1", folder)
    opened = open_transformer("someone/FramePack_F1", local_files_only=True)
    assert opened.name == "someone/FramePack_F1"
    assert opened.source_hash == open_transformer(folder).source_hash
    assert open_transformer(snapshot).name == "someone/FramePack_F1"


def test_cached_pipeline_repository_opens_its_transformer(
    folder: Path, hub_cache: Path, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    pipeline = tmp_path / "pipeline" / "transformer"
    pipeline.mkdir(parents=True)
    shutil.copy(folder / "config.json", pipeline)
    save_file(state, pipeline / SINGLE)
    put_in_cache(hub_cache, "someone/pipeline", pipeline.parent)
    opened = open_transformer("someone/pipeline", local_files_only=True)
    assert opened.shapes == {name: tuple(tensor.shape) for name, tensor in state.items()}


def test_cached_single_file_of_a_repository_opens(
    hub_cache: Path, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    (tmp_path / "files").mkdir()
    save_file(state, tmp_path / "files" / "FramePack_F1_bf16.safetensors")
    put_in_cache(hub_cache, "someone/comfy", tmp_path / "files")
    opened = open_transformer("someone/comfy/FramePack_F1_bf16.safetensors", local_files_only=True)
    assert opened.name == "FramePack_F1_bf16"
    with pytest.raises(CheckpointError, match=r"hf download someone/comfy other\.safetensors"):
        open_transformer("someone/comfy/other.safetensors", local_files_only=True)


def test_existing_folder_wins_over_a_hub_id(
    folder: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent.parent)
    relative = f"{folder.parent.name}/{folder.name}"
    assert is_hub_id(relative)
    assert open_transformer(relative).name == "Tiny_F1"


def test_offline_and_not_cached_says_what_to_download_and_where_it_looked(hub_cache: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_transformer("lllyasviel/FramePackI2V_HY", local_files_only=True)
    assert str(hub_cache) in str(caught.value)
    assert "hf download lllyasviel/FramePackI2V_HY" in str(caught.value)
    assert "no local path" in str(caught.value)


def test_offline_with_a_shard_missing_from_the_cache_names_it(folder: Path, hub_cache: Path) -> None:
    snapshot = put_in_cache(hub_cache, "someone/model", folder)
    shard = sorted(snapshot.glob("*.safetensors"))[-1]
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"{shard.name} of someone/model is not in the Hub cache"):
        open_transformer("someone/model", local_files_only=True)


def answer(status: int) -> object:
    """An HTTP response of the library that huggingface_hub was built on."""
    import importlib

    module = importlib.import_module(
        huggingface_hub.errors.HfHubHTTPError.__bases__[0].__module__.split(".")[0]
    )
    request = module.Request("GET", "https://huggingface.co/someone/model")
    return module.Response(status, request=request)


@pytest.mark.parametrize(
    ("error", "match"),
    [
        (huggingface_hub.errors.GatedRepoError, "someone/model is gated: accept its terms"),
        (huggingface_hub.errors.RepositoryNotFoundError, "no repository someone/model .* check the spelling"),
        (huggingface_hub.errors.HfHubHTTPError, "could not be downloaded: .*try again"),
    ],
)
def test_refusals_of_the_hub_are_explained(
    monkeypatch: pytest.MonkeyPatch, hub_cache: Path, error: type[Exception], match: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise error("refused", response=answer(403))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(CheckpointError, match=match):
        open_transformer("someone/model")


def test_another_models_config_is_refused_before_its_weights_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, hub_cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "HunyuanVideoTransformer3DModel"}')
    asked = []

    def download(repository: str, filename: str, *, revision: str | None, local_files_only: bool) -> str:
        asked.append(filename)
        return str(tmp_path / "config.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match="_class_name must be"):
        open_transformer("someone/model")
    assert asked == ["config.json"]


def test_a_model_that_is_not_admitted_is_not_downloaded(
    monkeypatch: pytest.MonkeyPatch, hub_cache: Path, folder: Path
) -> None:
    asked = []

    def download(repository: str, filename: str, *, revision: str | None, local_files_only: bool) -> str:
        asked.append(filename)
        return str(folder / "config.json")

    def refuse(name: str, config: TransformerConfig) -> None:
        raise CheckpointError(f"{name} with {config.num_layers} blocks is too large")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match="someone/model with 1 blocks is too large"):
        open_transformer("someone/model", admit=refuse)
    assert asked == ["config.json"]
    with pytest.raises(CheckpointError, match="is too large"):
        open_transformer(folder, admit=refuse)


def test_failed_lookup_sets_no_environment_variable(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    before = dict(os.environ)
    with pytest.raises(CheckpointError):
        open_transformer("someone/model", local_files_only=True)
    assert dict(os.environ) == before
