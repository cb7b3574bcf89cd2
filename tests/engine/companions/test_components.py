"""Finding a model's companions: its own first, then the table, never a silent guess."""

import json
import logging
import shutil
from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import huggingface_hub.errors
import pytest
import torch
from published_config import PUBLISHED
from safetensors.torch import save_file

import isoframe.engine
from isoframe.engine import Engine
from isoframe.engine.checkpoints import hub
from isoframe.engine.companions import components as components_module
from isoframe.engine.companions.components import (
    COMPANIONS,
    ComponentRef,
    Components,
    ModelProfile,
    find_components,
)
from isoframe.engine.errors import CheckpointError, ConfigError
from isoframe.engine.families.framepack.family import FramePack
from isoframe.engine.families.opening import open_transformer

HUNYUAN = "hunyuanvideo-community/HunyuanVideo"
REDUX = "lllyasviel/flux_redux_bfl"


@pytest.fixture(autouse=True)
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    hub._announce_license.cache_clear()
    return cache


def make_transformer(folder: Path, **changes: object) -> Path:
    """A folder that opens as a transformer; no weights are read when components are looked for."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(PUBLISHED | changes))
    save_file({"proj_out.bias": torch.zeros(64)}, folder / "diffusion_pytorch_model.safetensors")
    return folder


def make_pipeline(folder: Path, companions: tuple[str, ...] = COMPANIONS, **profile: object) -> Path:
    make_transformer(folder / "transformer")
    for name in companions:
        (folder / name).mkdir()
        (folder / name / components_module._MAIN_FILES.get(name, "config.json")).write_text("{}")
    if profile:
        (folder / "isoframe.json").write_text(json.dumps(profile))
    return folder


def put_in_cache(cache: Path, repository: str, folder: Path) -> None:
    root = cache / f"models--{repository.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, root / "snapshots" / ("0" * 40))


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)


@pytest.mark.parametrize(
    ("source", "order"),
    [("lllyasviel/FramePackI2V_HY", "inverted"), ("lllyasviel/FramePack_F1_I2V_HY_20250503", "forward")],
)
def test_published_repositories_have_companions_and_order_without_asking_the_hub(
    monkeypatch: pytest.MonkeyPatch, source: str, order: str
) -> None:
    forbid_network(monkeypatch)
    found = find_components(source)
    assert (found.name, found.transformer) == (source, source)
    for name in COMPANIONS[:5]:
        assert (found.ref(name).source, found.ref(name).subfolder) == (HUNYUAN, name)
    for name in COMPANIONS[5:]:
        assert (found.ref(name).source, found.ref(name).subfolder) == (REDUX, name)
    assert found.default_order == order
    assert found.profile.crop_start == 95
    assert found.profile.prompt_template is None
    assert len(found.profile.buckets) == 14
    assert all(380_000 < height * width < 400_000 for height, width in found.profile.buckets)
    assert {(width, height) for height, width in found.profile.buckets} == set(found.profile.buckets)


def test_every_repository_of_the_table_has_a_licence_note() -> None:
    licenses = json.loads((Path(isoframe.engine.__file__).parent / "data" / "licenses.json").read_text())
    shared = {source for source, _ in FramePack.companions().values()}
    assert {*FramePack.hub_models(), *shared} == licenses.keys()


def test_pipeline_folder_brings_its_own_companions(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "mine", order="both", buckets=[[64, 96]])
    found = find_components(folder)
    assert (found.name, found.transformer) == ("mine", str(folder))
    for name in COMPANIONS:
        assert found.ref(name).fetch(local_files_only=True) == folder / name
    assert found.profile == ModelProfile(buckets=((64, 96),), order="both", crop_start=None)


def test_gaps_of_a_published_width_folder_are_filled_from_the_table(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "mine", ("vae",))
    found = find_components(folder)
    assert found.ref("vae").source == str(folder)
    assert found.ref("text_encoder").source == HUNYUAN
    assert found.profile.crop_start == 95


def test_flat_folder_of_other_widths_has_no_companions_until_one_is_asked_for(tmp_path: Path) -> None:
    found = find_components(make_transformer(tmp_path / "small", text_embed_dim=96))
    with pytest.raises(CheckpointError, match=r"small has no text_encoder: .*components=\{'text_encoder'"):
        _ = found.ref("text_encoder")


def test_single_file_takes_the_published_companions(tmp_path: Path) -> None:
    folder = make_transformer(tmp_path / "files")
    path = folder / "FramePack_F1_fp8.safetensors"
    (folder / "diffusion_pytorch_model.safetensors").rename(path)
    found = find_components(path)
    assert (found.name, found.transformer, found.ref("vae").source) == (
        "FramePack_F1_fp8",
        str(path),
        HUNYUAN,
    )
    assert found.default_order == "forward"


def test_unknown_hub_transformer_takes_the_published_companions(hub_cache: Path) -> None:
    found = find_components("someone/FramePack-finetune", local_files_only=True)
    assert (found.name, found.ref("image_encoder").source) == ("someone/FramePack-finetune", REDUX)
    file = find_components("someone/comfy/FramePack_F1.safetensors", local_files_only=True)
    assert (file.name, file.ref("vae").source) == ("FramePack_F1", HUNYUAN)


def test_hub_pipeline_brings_the_companions_of_its_index(hub_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    index = {
        "_class_name": "X",
        "vae": ["diffusers", "Y"],
        "tokenizer": ["a", "b"],
        "image_encoder": [None, None],
    }
    (tmp_path / "repo" / "model_index.json").write_text(json.dumps(index))
    (tmp_path / "repo" / "isoframe.json").write_text('{"order": "forward"}')
    put_in_cache(hub_cache, "someone/pipeline", tmp_path / "repo")
    found = find_components("someone/pipeline", local_files_only=True)
    assert (found.ref("vae").source, found.ref("vae").subfolder) == ("someone/pipeline", "vae")
    assert found.ref("tokenizer").source == "someone/pipeline"
    assert found.ref("image_encoder").source == REDUX
    assert (found.profile.order, found.profile.crop_start) == ("forward", None)


def test_unreachable_hub_is_asked_once(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repository: str, filename: str, *, revision: str | None, local_files_only: bool) -> str:
        asked.append(local_files_only)
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    found = find_components("someone/FramePack-finetune")
    assert found.ref("vae").source == HUNYUAN
    assert found.is_hub_silent
    assert asked == [False, True]
    with pytest.raises(CheckpointError, match="hf download someone/FramePack-finetune"):
        Engine.load("someone/FramePack-finetune")
    assert asked[2:].count(False) == 1
    assert not find_components("someone/FramePack-finetune", local_files_only=True).is_hub_silent


def test_overrides_take_folders_pipelines_and_hub_ids(tmp_path: Path) -> None:
    pipeline = make_pipeline(tmp_path / "mine")
    overrides = {
        "vae": str(pipeline),
        "text_encoder": str(pipeline / "text_encoder"),
        "image_encoder": "google/siglip-so400m-patch14-384",
        "tokenizer": "someone/else/deep/er",
    }
    found = find_components("lllyasviel/FramePackI2V_HY", overrides=overrides)
    assert (found.ref("vae").source, found.ref("vae").subfolder) == (str(pipeline), "vae")
    assert (found.ref("text_encoder").source, found.ref("text_encoder").subfolder) == (
        str(pipeline / "text_encoder"),
        None,
    )
    assert (found.ref("image_encoder").source, found.ref("image_encoder").subfolder) == (
        overrides["image_encoder"],
        None,
    )
    assert (found.ref("tokenizer").source, found.ref("tokenizer").subfolder) == ("someone/else", "deep/er")
    assert found.ref("tokenizer_2").source == HUNYUAN
    assert found.profile.crop_start is None  # another tokenizer: the published count may not be its own


def test_override_of_an_unknown_component_names_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"components must be one of vae, .*did you mean 'vae'"):
        find_components("lllyasviel/FramePackI2V_HY", overrides={"vea": "x"})


def test_override_that_is_neither_path_nor_id_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"the component vae must be .* got '\./nowhere'"):
        find_components("lllyasviel/FramePackI2V_HY", overrides={"vae": "./nowhere"})


def test_unknown_source_names_both_readings() -> None:
    with pytest.raises(CheckpointError, match=r"'demoo': as a path .*as a Hub id"):
        find_components("demoo")


def test_demo_is_the_built_in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(isoframe.engine.__file__).parent / "demo" / "weights" == components_module.DEMO_FOLDER
    folder = make_pipeline(tmp_path / "weights", order="both")
    monkeypatch.setattr(components_module, "DEMO_FOLDER", folder)
    found = find_components("demo")
    assert (found.name, found.transformer, found.ref("vae").source) == ("demo", str(folder), str(folder))
    assert found.default_order == "inverted"


def test_missing_demo_weights_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components_module, "DEMO_FOLDER", tmp_path / "gone")
    with pytest.raises(CheckpointError, match=r"demo model is missing from .*install isoframe again"):
        find_components("demo")


def with_order(name: str, order: str | None) -> Components:
    profile = ModelProfile(buckets=((64, 64),), order=order)
    return Components(name=name, transformer="", profile=profile, refs={})


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("lllyasviel/FramePack_F1_I2V_HY_20250503", "forward"),
        ("FramePack-F1", "forward"),
        ("F1", "forward"),
        ("FramePackI2V_HY", "inverted"),
        ("HF1x", "inverted"),
        ("F12_model", "inverted"),
    ],
)
def test_order_of_an_unknown_model_comes_from_its_name(
    caplog: pytest.LogCaptureFixture, name: str, order: str
) -> None:
    caplog.set_level(logging.INFO)
    assert with_order(name, None).default_order == order
    assert len(caplog.records) == (order == "inverted")


def test_order_of_the_profile_wins_over_the_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert with_order("FramePack_F1", "inverted").default_order == "inverted"
    assert not caplog.records


@pytest.mark.parametrize(
    ("profile", "match"),
    [
        ({"bucket": []}, "unknown keys: bucket"),
        ({"buckets": []}, "buckets must be"),
        ({"buckets": [[64, 60]]}, "buckets must be multiples of 16"),
        ({"buckets": [[64]]}, "buckets must be"),
        ({"order": "backward"}, "order must be inverted, forward, both or null, got 'backward'"),
        ({"prompt_template": "no place"}, "prompt_template must contain {} once"),
        ({"crop_start": -1}, "crop_start must be at least 0"),
        ({"crop_start": "95"}, "isoframe.json"),
        ({"latent_rgb": [[0, 0, 0]] * 16}, "latent_rgb must have 17 rows"),
    ],
)
def test_unusable_profile_is_refused(tmp_path: Path, profile: dict[str, object], match: str) -> None:
    folder = make_pipeline(tmp_path / "mine", **profile)
    with pytest.raises(CheckpointError, match=match) as caught:
        find_components(folder)
    assert "isoframe.json" in str(caught.value)


def test_own_template_is_counted_unless_the_profile_gives_its_length(tmp_path: Path) -> None:
    folder = make_pipeline(tmp_path / "a", ("vae",), prompt_template="say {} now")
    assert find_components(folder).profile.crop_start is None
    other = make_pipeline(tmp_path / "b", prompt_template="say {} now", crop_start=2)
    assert find_components(other).profile.crop_start == 2


def test_fetch_refuses_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config\.json; copy"):
        ComponentRef(str(tmp_path)).fetch()


def test_fetch_names_missing_shards(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-00001-of-00002.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"lacks 1 of the 2 shards .*model-00002-of-00002\.safetensors"):
        ComponentRef(str(tmp_path)).fetch()


def test_fetch_refuses_an_unusable_index(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="must have a weight_map"):
        ComponentRef(str(tmp_path)).fetch()


def test_fetch_finds_a_cached_component_offline(hub_cache: Path, tmp_path: Path) -> None:
    make_pipeline(tmp_path / "repo")
    put_in_cache(hub_cache, "someone/pipeline", tmp_path / "repo")
    folder = ComponentRef("someone/pipeline", "vae").fetch(local_files_only=True)
    assert (folder / "config.json").is_file()
    assert folder.name == "vae"


def test_fetch_offline_says_what_to_download_and_where_it_looked(hub_cache: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_components("lllyasviel/FramePackI2V_HY").ref("vae").fetch(local_files_only=True)
    assert f'hf download {HUNYUAN} --include "vae/*"' in str(caught.value)
    assert str(hub_cache) in str(caught.value)


def test_licence_is_logged_once_before_a_download(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    make_pipeline(tmp_path / "repo")
    asked = []

    def download(repository: str, filename: str, *, revision: str | None, local_files_only: bool) -> str:
        assert "Tencent Hunyuan Community License" in caplog.text
        asked.append(filename)
        return str(tmp_path / "repo" / filename)

    def snapshot(
        repository: str, *, allow_patterns: list[str], revision: str | None, local_files_only: bool
    ) -> str:
        assert all(pattern.startswith("vae/") for pattern in allow_patterns)
        return str(tmp_path / "repo")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    vae = find_components("lllyasviel/FramePackI2V_HY").ref("vae")
    assert vae.fetch() == vae.fetch() == tmp_path / "repo" / "vae"
    assert asked == ["vae/config.json"] * 2
    assert [record.message.count("licence") for record in caplog.records] == [1]


def test_no_licence_is_logged_for_what_is_cached(
    hub_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    make_pipeline(tmp_path / "repo")
    put_in_cache(hub_cache, HUNYUAN, tmp_path / "repo")
    find_components("lllyasviel/FramePackI2V_HY").ref("vae").fetch(local_files_only=True)
    assert not caplog.records


def test_a_revision_behind_the_name_is_asked_for_and_the_commit_is_known(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[object, object]] = []
    monkeypatch.setattr(
        huggingface_hub,
        "try_to_load_from_cache",
        lambda name, _, revision=None: asked.append((name, revision)),
    )
    hub.is_cached(f"{HUNYUAN}@abc123", "config.json")
    # Those of the table without a pin are of the main branch.
    hub.is_cached(HUNYUAN, "config.json")
    assert asked == [(HUNYUAN, "abc123"), (HUNYUAN, None)]
    monkeypatch.setitem(hub._data("revisions"), HUNYUAN, "def")
    assert hub.split_revision(HUNYUAN) == (HUNYUAN, "def")
    assert "--revision abc123" in str(hub.not_cached(f"{HUNYUAN}@abc123", "config.json"))
    assert hub.is_hub_id("a/b@v1.0")
    assert not hub.is_hub_id("a/b@../c")
    snapshot = hub_cache / "models--a--b" / "snapshots" / "0123"
    assert hub.commit_of(snapshot / "transformer" / "config.json") == "0123"
    assert hub.commit_of(tmp_path / "config.json") is None
    transformer = make_transformer(snapshot)
    assert open_transformer(transformer).revision == "0123"
