"""Which model, with which companions: VAE, text encoders, image encoder, and the profile of the whole."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..checkpoints.checkpoint import MissingShardError, check_shards, folder_name, missing_source
from ..checkpoints.hub import NotCachedError, hub_file, hub_folder, is_hub_id, not_cached, split_revision
from ..errors import CheckpointError, UnknownModelError
from ..families.family import Family
from ..families.opening import read_transformer_config
from ..families.registry import families, family_of, known_models, recognise
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
            try:
                check_shards(index)
            except MissingShardError as error:
                if Path(self.source).is_dir():
                    raise
                prefix = f"{self.subfolder}/" if self.subfolder else ""
                raise not_cached(self.source, prefix + error.names[0]) from error


# Pixels of a bucket's side: no card holds a larger video.
_MAX_SIDE = 8192


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
        if not self.buckets or any(
            len(size) != 2 or not all(type(side) is int and 16 <= side <= _MAX_SIDE for side in size)
            for size in self.buckets
        ):
            raise CheckpointError(
                f"buckets must be (height, width) pairs of 16 to {_MAX_SIDE}, got {self.buckets}"
            )
        if any(pixels % 16 for size in self.buckets for pixels in size):
            raise CheckpointError(f"buckets must be multiples of 16, got {self.buckets}")
        if self.order not in (*ORDERS, "both", None):
            raise CheckpointError(f"order must be {', '.join(ORDERS)}, both or null, got {self.order!r}")
        if self.prompt_template is not None and self.prompt_template.count("{}") != 1:
            raise CheckpointError(f"prompt_template must contain {{}} once, got {self.prompt_template!r}")
        if self.crop_start is not None and (type(self.crop_start) is not int or self.crop_start < 0):
            raise CheckpointError(f"crop_start must be at least 0, got {self.crop_start}")
        if self.latent_rgb is not None and [len(row) for row in self.latent_rgb] != [3] * 17:
            raise CheckpointError("latent_rgb must have 17 rows of 3 numbers: 16 channels and the bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class Components:
    """A transformer and its companions, each under its name in diffusers' pipeline.

    Companions are found, not opened: latents can be sampled without any. Asking for one that the model neither
    brings nor shares with its family raises :class:`CheckpointError`.

    Attributes:
        name: "demo", the Hub id, or the name of the folder or file.
        transformer: what :func:`~isoframe.engine.families.opening.open_transformer` opens, or the folder of a unit store.
        profile: buckets, order, prompt template.
        refs: the companions found, by name.
        is_hub_silent: whether the Hub was asked for the profile and did not answer; asking again would take as long.
        family: of the transformer.
    """

    name: str
    transformer: str
    profile: ModelProfile
    refs: Mapping[str, ComponentRef]
    is_hub_silent: bool = False
    family: type[Family] = field(default_factory=recognise)

    @property
    def default_order(self) -> str:
        """The order that ``order="auto"`` means."""
        if self.profile.order == "both":
            return "inverted"
        order = self.profile.order or self.family.default_order(self.name)
        if order is None:
            _logger.info(
                "the order of %s is not known: taking inverted; a checkpoint of the F1 kind needs forward",
                self.name,
            )
        return order or "inverted"

    def read_configs(self) -> dict[str, Mapping[str, Any]]:
        """The ``config.json`` of every companion that is on this machine."""
        paths = {
            name: Path(ref.source) / (ref.subfolder or "") / ref.main_file for name, ref in self.refs.items()
        }
        return {
            name: read_json(path)
            for name, path in paths.items()
            if path.name == "config.json" and path.is_file()
        }

    def ref(self, name: str) -> ComponentRef:
        """The companion called ``name``."""
        if name in self.refs:
            return self.refs[name]
        raise CheckpointError(
            f"{self.name} has no {name}: its folder brings none, and its widths are not those of the encoders "
            f"that its family shares; give a folder or Hub id with components={{{name!r}: ...}}"
        )


def find_components(
    source: "str | os.PathLike[str]",
    *,
    overrides: Mapping[str, str] | None = None,
    local_files_only: bool = False,
) -> Components:
    """Find the companions of a model; none is downloaded.

    Args:
        source: "demo", a unit store, or anything that :func:`~isoframe.engine.families.opening.open_transformer` takes.
        overrides: other sources for companions, by name: a folder, "owner/name" or "owner/name/subfolder". A
            folder may be a whole pipeline; the companion's own folder in it is taken then.
        local_files_only: never ask the Hub.
    """
    for name in overrides or {}:
        check_choice("components", name, COMPANIONS)
    given = {name: _parse_override(name, value) for name, value in (overrides or {}).items()}
    text = os.fspath(source)
    path = _demo_folder() if text == "demo" else Path(text).expanduser()
    if is_store(path):
        return _find_of_store(path, given)
    if path.exists():
        return _find_local(path, given, "demo" if text == "demo" else None)
    return _find_on_hub(text, given, local_files_only)


_Refs = dict[str, ComponentRef]


def _find_local(path: Path, given: _Refs, name: str | None = None) -> Components:
    """A folder's own companions come first; those of the family fill the gaps if the widths are theirs."""
    folder = path if path.is_dir() else path.parent
    names = [name for name in COMPANIONS if path.is_dir() and (folder / name).is_dir()]
    # A pipeline with all its companions may be used for them alone.
    is_needed = len(names) < len(COMPANIONS) or (folder / "transformer" / "config.json").is_file()
    config = read_transformer_config(path) if is_needed else None
    family = type(family_of(config)) if is_needed else recognise()
    own = {name: _ref(name, str(folder), name) for name in names} | given
    return Components(
        name=name or (folder_name(path) if path.is_dir() else path.stem),
        transformer=str(path),
        profile=_read_profile(family, folder / PROFILE_NAME, own),
        refs=_shared_refs(family, config) | own,
        family=family,
    )


def _find_of_store(folder: Path, given: _Refs) -> Components:
    """A store has no companions of its own: they are those of the model it was made from, or fit its widths."""
    store = open_store(folder)
    if store.name == "demo":
        found = _find_local(_demo_folder(), given, "demo")
    elif any(store.name in family.hub_models() for family in families()):
        found = _find_on_hub(store.name, given, local_files_only=True)
    else:
        family = type(family_of(store.config))
        found = Components(
            name=store.name,
            transformer="",
            profile=_read_profile(family, folder / PROFILE_NAME, given),
            refs=_shared_refs(family, store.config) | given,
            family=family,
        )
    return replace(found, transformer=str(folder))


def _find_on_hub(source: str, given: _Refs, local_files_only: bool) -> Components:
    """A repository that a family knows, a pipeline with its own companions, or a transformer alone."""
    repository, _ = split_revision(source)
    known = next((family for family in families() if repository in family.hub_models()), None)
    family, names = known or recognise(), list[str]()
    profile, is_silent = None, False
    if known is None and is_hub_id(source):
        (index, profile), is_silent = _optional_files(
            source, ("model_index.json", PROFILE_NAME), local_files_only
        )
        names = _list_companions(index) if index else []
    elif known is None and not (is_hub_id(source.rpartition("/")[0]) and source.endswith(".safetensors")):
        raise UnknownModelError(missing_source("model", source, known_models()))
    own = {name: _ref(name, source, name) for name in names} | given
    return Components(
        name=Path(source).stem if source.endswith(".safetensors") else repository,
        transformer=source,
        profile=_read_profile(family, profile, own, order=family.hub_models().get(repository)),
        refs=_shared_refs(family) | own,
        is_hub_silent=is_silent,
        family=family,
    )


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
    raise UnknownModelError(missing_source(f"the component {name}", value, known_models()))


def _shared_refs(family: type[Family], config: Any = None) -> dict[str, ComponentRef]:
    """The companions that the models of ``family`` share; none if ``config`` has other widths."""
    return {name: _ref(name, *found) for name, found in family.companions(config).items()}


def _list_companions(index: Path) -> list[str]:
    """Companions that a pipeline's ``model_index.json`` lists."""
    listed = read_json(index)
    found = {name: listed[name] for name in COMPANIONS if listed.get(name)}
    for name, entry in found.items():
        if not isinstance(entry, list):
            raise CheckpointError(f"{index} must list {name} as library and class, got {entry!r}")
    return [name for name, entry in found.items() if entry[0] is not None]


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


def _read_profile(
    family: type[Family], path: Path | None, own: _Refs, *, order: str | None = None
) -> ModelProfile:
    """The profile in ``path``, where it is a file, over the published one; ``own`` are companions of the model alone.

    The published crop point belongs to the published template and tokenizer; a model that brings its own of
    either has its own counted.
    """
    defaults = family.profile()
    raw = read_json(path) if path is not None and path.is_file() else {}
    if "tokenizer" in own or raw.get("prompt_template") is not None:
        defaults["crop_start"] = None
    given = {name: value for name, value in raw.items() if not name.startswith("_")}
    unknown = sorted(given.keys() - {key.name for key in fields(ModelProfile)})
    if unknown:
        raise CheckpointError(f"{path} has unknown keys: {', '.join(unknown)}")
    merged = defaults | ({"order": order} if order else {}) | given
    try:
        return ModelProfile(**{name: _freeze(value) for name, value in merged.items()})
    except (CheckpointError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}") from error


def _freeze(value: object) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value
