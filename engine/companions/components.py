"""Which model, with which companions: VAE, text encoders, image encoder, and the profile of the whole."""

import dataclasses
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import folder_name, missing_source, open_transformer, read_index
from ..checkpoints.hub import NotCachedError, hub_file, hub_folder, is_hub_id, not_cached
from ..errors import CheckpointError, UnknownModelError
from ..families.framepack.transformer_config import TransformerConfig
from ..files import read_json
from ..request.config import ORDERS, check_choice
from ..weights.store import is_store, open_store

_logger = logging.getLogger(__name__)

COMPANIONS = (
    "vae",
    "text_encoder",
    "tokenizer",
    "text_encoder_2",
    "tokenizer_2",
    "image_encoder",
    "feature_extractor",
)
DEMO_FOLDER = Path(__file__).parents[1] / "demo" / "weights"
PROFILE_NAME = "isoframe.json"

_DATA = Path(__file__).parents[1] / "data"
# Everything a companion's folder may hold, and no second copy of its weights in another format.
_COMPONENT_FILES = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.json",
    "merges.txt",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model-*.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
)
# The file that tells a companion's folder from an empty one.
_MAIN_FILES = {
    "tokenizer": "tokenizer_config.json",
    "tokenizer_2": "tokenizer_config.json",
    "feature_extractor": "preprocessor_config.json",
}


@dataclass(frozen=True, slots=True)
class ComponentRef:
    """Where a companion lies.

    Attributes:
        source: a local folder or a Hub id.
        subfolder: folder in it; None is the source itself.
        main_file: the file that the folder cannot be without.
    """

    source: str
    subfolder: str | None = None
    main_file: str = "config.json"

    def fetch(self, *, local_files_only: bool = False) -> Path:
        """The component's local folder, downloaded if it is on the Hub and not cached."""
        root, prefix = Path(self.source), f"{self.subfolder}/" if self.subfolder else ""
        if not root.is_dir():
            names = [prefix + name for name in _COMPONENT_FILES]
            required = prefix + self.main_file
            root = hub_folder(self.source, names, required=required, local_files_only=local_files_only)
        folder = root / self.subfolder if self.subfolder else root
        if not (folder / self.main_file).is_file():
            raise CheckpointError(f"{folder} has no {self.main_file}; copy the component's folder again")
        self._check_shards(folder)
        return folder

    def _check_shards(self, folder: Path) -> None:
        for index in folder.glob("*.safetensors.index.json"):
            shards = set(read_index(index).values())
            missing = [name for name in sorted(shards) if not (folder / name).is_file()]
            if missing and not Path(self.source).is_dir():
                raise not_cached(
                    self.source, f"{self.subfolder}/{missing[0]}" if self.subfolder else missing[0]
                )
            if missing:
                raise CheckpointError(
                    f"{folder} lacks {len(missing)} of the {len(shards)} shards that {index.name} names: "
                    f"{', '.join(missing[:10])}; copy them again"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """What a model expects beyond its tensors; ``isoframe.json`` in its folder.

    Attributes:
        buckets: (height, width) of the sizes it was trained on, in pixels.
        order: "inverted", "forward", "both", or None where only the model's name can tell.
        prompt_template: text around the prompt, which replaces "{}"; None is diffusers' FramePack template.
        crop_start: tokens of the template before the prompt; None counts them with the model's tokenizer.
        latent_rgb: 16 rows and a bias row of (red, green, blue) for previews; None fits them to the VAE.
    """

    buckets: tuple[tuple[int, int], ...]
    order: str | None = None
    prompt_template: str | None = None
    crop_start: int | None = None
    latent_rgb: tuple[tuple[float, float, float], ...] | None = None

    def __post_init__(self) -> None:
        if not self.buckets or any(len(size) != 2 or min(size) < 16 for size in self.buckets):
            raise CheckpointError(f"buckets must be (height, width) pairs of at least 16, got {self.buckets}")
        if any(pixels % 16 for size in self.buckets for pixels in size):
            raise CheckpointError(f"buckets must be multiples of 16, got {self.buckets}")
        if self.order not in (*ORDERS, "both", None):
            raise CheckpointError(f"order must be {', '.join(ORDERS)}, both or null, got {self.order!r}")
        if self.prompt_template is not None and self.prompt_template.count("{}") != 1:
            raise CheckpointError(f"prompt_template must contain {{}} once, got {self.prompt_template!r}")
        if self.crop_start is not None and self.crop_start < 0:
            raise CheckpointError(f"crop_start must be at least 0, got {self.crop_start}")
        if self.latent_rgb is not None and [len(row) for row in self.latent_rgb] != [3] * 17:
            raise CheckpointError("latent_rgb must have 17 rows of 3 numbers: 16 channels and the bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """A transformer and its companions, each under its name in diffusers' pipeline.

    Companions are found, not opened: latents can be sampled without any. Asking for one that the model neither
    brings nor shares with HunyuanVideo raises :class:`CheckpointError`.

    Attributes:
        name: "demo", the Hub id, or the name of the folder or file.
        transformer: what :func:`~isoframe.engine.checkpoints.checkpoint.open_transformer` opens, or the folder of a unit store.
        profile: buckets, order, prompt template.
        refs: the companions found, by name.
        is_hub_silent: whether the Hub was asked for the profile and did not answer; asking again would take as long.
    """

    name: str
    transformer: str
    profile: ModelProfile
    refs: Mapping[str, ComponentRef]
    is_hub_silent: bool = False

    def ref(self, name: str) -> ComponentRef:
        """The companion called ``name``."""
        if name in self.refs:
            return self.refs[name]
        raise CheckpointError(
            f"{self.name} has no {name}: its folder brings none, and its widths are not those of HunyuanVideo's "
            f"encoders; give a folder or Hub id with components={{{name!r}: ...}}"
        )


def find_components(
    source: "str | os.PathLike[str]",
    *,
    overrides: Mapping[str, str] | None = None,
    local_files_only: bool = False,
) -> Components:
    """Find the companions of a model; none is downloaded.

    Args:
        source: "demo", a unit store, or anything that :func:`~isoframe.engine.checkpoints.checkpoint.open_transformer` takes.
        overrides: other sources for companions, by name: a folder, "owner/name" or "owner/name/subfolder". A
            folder may be a whole pipeline; the companion's own folder in it is taken then.
        local_files_only: never ask the Hub.
    """
    for name in overrides or {}:
        check_choice("components", name, COMPANIONS)
    text = os.fspath(source)
    path = _demo_folder() if text == "demo" else Path(text).expanduser()
    has_tokenizer = "tokenizer" in (overrides or {})
    if is_store(path):
        found = _find_store(path, has_tokenizer)
    elif path.exists():
        found = _find_local(path, "demo" if text == "demo" else None, has_tokenizer)
    else:
        found = _find_on_hub(text, local_files_only, has_tokenizer)
    given = {name: _parse_override(name, value) for name, value in (overrides or {}).items()}
    return dataclasses.replace(found, refs={**found.refs, **given})


def default_order(name: str, profile: ModelProfile) -> str:
    """The order that ``order="auto"`` means for the model called ``name``."""
    if profile.order in ORDERS:
        return profile.order
    if profile.order == "both":
        return "inverted"
    if re.search(r"(?<![A-Za-z0-9])F1(?![A-Za-z0-9])", name):
        return "forward"
    _logger.info(
        "the order of %s is not known: taking inverted; a checkpoint of the F1 kind needs forward", name
    )
    return "inverted"


def _find_local(path: Path, name: str | None, has_tokenizer: bool) -> Components:
    """A folder's own companions come first; HunyuanVideo's fill the gaps if the widths are theirs."""
    folder = path if path.is_dir() else path.parent
    own = {
        companion: _ref(companion, str(folder), companion)
        for companion in COMPANIONS
        if path.is_dir() and (folder / companion).is_dir()
    }
    refs = own
    if len(own) < len(COMPANIONS):
        refs = {**_default_refs(open_transformer(path).config), **own}
    profile_path = folder / PROFILE_NAME
    return Components(
        name=name or (folder_name(path) if path.is_dir() else path.stem),
        transformer=str(path),
        profile=_read_profile(
            profile_path if profile_path.is_file() else None,
            has_tokenizer=has_tokenizer or "tokenizer" in own,
        ),
        refs=refs,
    )


def _find_store(folder: Path, has_tokenizer: bool) -> Components:
    """A store has no companions of its own: they are those of the model it was made from, or fit its widths."""
    store = open_store(folder)
    if store.name == "demo":
        found = _find_local(_demo_folder(), "demo", has_tokenizer)
    elif store.name in _read_data("companions.json")["models"]:
        found = _find_on_hub(store.name, True, has_tokenizer)
    else:
        profile = folder / PROFILE_NAME
        found = Components(
            name=store.name,
            transformer="",
            profile=_read_profile(profile if profile.is_file() else None, has_tokenizer=has_tokenizer),
            refs=_default_refs(store.config),
        )
    return dataclasses.replace(found, transformer=str(folder))


def _find_on_hub(source: str, local_files_only: bool, has_tokenizer: bool) -> Components:
    """A repository in the table, a pipeline with its own companions, or a transformer alone."""
    table = _read_data("companions.json")
    known = table["models"].get(source)
    repository, own, profile_path, is_silent = source, [], None, False
    if known is None and is_hub_id(source):
        (index, profile_path), is_silent = _optional_files(
            source, ("model_index.json", PROFILE_NAME), local_files_only
        )
        own = _list_companions(index) if index else []
    elif known is None and not (is_hub_id(source.rpartition("/")[0]) and source.endswith(".safetensors")):
        raise UnknownModelError(missing_source("model", source))
    profile = _read_profile(
        profile_path, has_tokenizer=has_tokenizer or "tokenizer" in own, order=known and known["order"]
    )
    defaults = table["companions"][known["companions"] if known else table["default"]]["components"]
    refs = {name: _ref(name, *place) for name, place in defaults.items()}
    refs |= {name: _ref(name, repository, name) for name in own}
    name = Path(source).stem if source.endswith(".safetensors") else source
    return Components(name=name, transformer=source, profile=profile, refs=refs, is_hub_silent=is_silent)


def _demo_folder() -> Path:
    if not DEMO_FOLDER.is_dir():
        raise CheckpointError(
            f"the built-in demo model is missing from {DEMO_FOLDER}; install isoframe again"
        )
    return DEMO_FOLDER


def _ref(name: str, source: str, subfolder: str | None) -> ComponentRef:
    return ComponentRef(source, subfolder, _MAIN_FILES.get(name, "config.json"))


def _parse_override(name: str, value: str) -> ComponentRef:
    path = Path(value).expanduser()
    if path.is_dir():
        return _ref(name, str(path), name if (path / name).is_dir() else None)
    owner, _, rest = value.partition("/")
    repository, _, subfolder = rest.partition("/")
    if is_hub_id(f"{owner}/{repository}"):
        return _ref(name, f"{owner}/{repository}", subfolder or None)
    raise UnknownModelError(missing_source(f"the component {name}", value))


def _default_refs(config: TransformerConfig) -> dict[str, ComponentRef]:
    """HunyuanVideo's companions, if the transformer's inputs have their widths."""
    table = _read_data("companions.json")
    companions = table["companions"][table["default"]]
    if any(getattr(config, key) != width for key, width in companions["widths"].items()):
        return {}
    return {name: _ref(name, *place) for name, place in companions["components"].items()}


def _list_companions(index: Path) -> list[str]:
    """Companions that a pipeline's ``model_index.json`` lists."""
    listed = read_json(index)
    return [name for name in COMPANIONS if listed.get(name, [None])[0] is not None]


def _optional_files(
    repository: str, filenames: tuple[str, ...], local_files_only: bool
) -> tuple[list[Path | None], bool]:
    """Local paths of the files that the repository has, None for the others; and whether the Hub was silent."""
    paths: list[Path | None] = []
    is_silent = False
    for filename in filenames:
        try:
            paths.append(hub_file(repository, filename, local_files_only=local_files_only))
        except NotCachedError:
            paths.append(None)
            # The Hub cannot be reached, and finding that out again takes another half a minute.
            is_silent = is_silent or not local_files_only
            local_files_only = True
    return paths, is_silent


def _read_profile(path: Path | None, *, has_tokenizer: bool, order: str | None = None) -> ModelProfile:
    """The profile in ``path`` over the published one.

    The published crop point belongs to the published template and tokenizer; a model that brings its own of
    either has its own counted.
    """
    defaults = _read_data("profile.json")
    raw = read_json(path) if path is not None else {}
    if has_tokenizer or raw.get("prompt_template") is not None:
        defaults["crop_start"] = None
    given = {name: value for name, value in raw.items() if not name.startswith("_")}
    unknown = sorted(given.keys() - {key.name for key in fields(ModelProfile)})
    if unknown:
        raise CheckpointError(f"{path} has unknown keys: {', '.join(unknown)}")
    merged = defaults | ({"order": order} if order else {}) | given
    try:
        return ModelProfile(**{name: _freeze(value) for name, value in merged.items()})
    except (CheckpointError, TypeError) as error:
        raise CheckpointError(f"{path or _DATA / 'profile.json'}: {error}") from error


def _freeze(value: object) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value


def _read_data(filename: str) -> dict[str, Any]:
    return read_json(_DATA / filename)
